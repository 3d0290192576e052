"""Which choice an answer means: what the multiple-choice benchmarks share.

Source: `chosen_letter` reads as lmms-eval 0.7.3 does (`_task_utils/mcq_extract.py`).
"""

import string
from collections.abc import Iterator, Sequence

from vision_remember.data.tables import Row

PHRASES = (
    *("answer is", "best answer is", "correct option is", "best option is", "choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is", "correct answer is", "the answer is"),
    *("the correct answer is", "the best answer is", "the correct option is", "the best option is"),
    *("the choice is", "the correct choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
FORMATS = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}  # how surely each shows a choice
START, END, PHRASE, ANYWHERE = 10, 9, 7, 0


def lettered(options: Sequence[str]) -> list[str]:
    """Return `["A. first", "B. second", ...]`."""
    return [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]


def right_letter(row: Row) -> str:
    """Return the letter of a row's right choice, which may be written as its number from 0; choices may stand in the question.

    Raises:
        ValueError: the row has no such choice.
    """
    answer, letters = row.text("answer").strip(), string.ascii_uppercase[: len(row.options) or None]
    letter = answer.upper() if not answer.isdecimal() else letters[int(answer) :][:1]
    if len(letter) != 1 or letter not in letters:
        raise ValueError(f"{row.where}: the answer is {answer!r}, the choices are {', '.join(letters)}: mend the row")
    return letter


def chosen_letter(answer: str, letters: Sequence[str]) -> str:
    """Return the letter of the choice that an answer names, or an empty string.

    Every way to name a choice has a rank: at the start or end of the answer, after a phrase such as "the answer is", in parentheses, before
    a period, a colon, a parenthesis, a blank, and anywhere at all. The highest rank wins, and in it the last place.

    Args:
        answer: what was said.
        letters: those that stand for choices, in capitals.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    found = list(_ranked(f" {text} ", letters)) if answer.strip() else []
    return max(found)[2] if found else ""


def _ranked(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (rank, place, letter) of everything that could be the choice."""
    found = [
        (rank, text.rfind(spelled.format(letter)), letter)
        for spelled, rank in FORMATS.items()
        for letter in letters
        if spelled.format(letter) in text
    ]
    small = text.lower()
    for phrase in PHRASES:
        if (begin := small.find(phrase)) >= 0:
            places = ((text.find(letter, begin + len(phrase)), letter) for letter in letters)
            found += [(PHRASE, place, letter) for place, letter in places if place >= 0]
    words = text.strip()
    for letter in letters:
        if words.startswith(letter) and not words[1:2].isalpha():
            found.append((START, 0, letter))
        if words.endswith(letter) and not words[-2:-1].isalpha():
            found.append((END, len(text) - 1, letter))
    yield from found or ((ANYWHERE, text.rfind(letter), letter) for letter in letters if letter in text)
