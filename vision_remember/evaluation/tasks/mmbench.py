"""MMBench: multiple-choice questions about abilities, asked once for every rotation of their choices.

Circular accuracy: a question counts when the answer is right in every rotation of its choices. The copies of a question have its index plus
a multiple of a million; a file without copies gives plain accuracy. Which choice an answer means is decided by rules alone, never by a
model: a single letter that stands by itself, else the one choice whose words it contains, else `choice.chosen_letter`. Published
figures let a GPT decide where rules fail.

Source: Liu et al., "MMBench" (arXiv 2307.06281); `lmms_eval.tasks.mmbench.mmbench_evals` with `eval_method="static"`, split dev.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import LETTER_ANSWER, Item, LocalCopy, Scored, read_items
from vision_remember.evaluation.tasks.choice import chosen_letter, lettered, right_letter

MAX_NEW_TOKENS = 128
ROTATIONS = 1_000_000
LETTERS = "ABCDE"
BRACKETS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order, copies included; families are the abilities.

    Raises:
        ValueError: there are copies alone.
    """
    items = read_items(config, "dev", _item)
    if all(int(item.id) >= ROTATIONS for item in items):
        raise ValueError(f"MMBench: no question of {len(items)} has an index below {ROTATIONS:,}; copy all rows")
    return items


def score(prediction: str, item: Item) -> float:
    """Return 1.0 when the answer means the right choice."""
    choices = json.loads(item.facts["choices"])
    meant = lone_letter(prediction) or lone_choice(prediction, choices) or chosen_letter(prediction, sorted(choices))
    return float(meant == item.answers[0])


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the share of questions answered right in every rotation, and in the first one alone, in per cent."""
    rotations = defaultdict(list)
    for one in scored:
        rotations[one.page].append(one.score)
    first = [one.score for one in scored if int(one.id) < ROTATIONS]
    circular = sum(min(values) for values in rotations.values()) / len(rotations)
    return {"circular": 100 * circular, "once": 100 * sum(first) / len(first)}


def lone_letter(answer: str) -> str:
    """Return the letter that stands by itself in an answer, alone or in one kind of brackets, or an empty string."""
    words = answer.split()
    for spelled in ("{}", *BRACKETS):
        named = [letter for letter in LETTERS if spelled.format(letter) in words]
        is_article = spelled == "{}" and "A" in words and len(words) > 3  # "A dog on a ..." names no choice
        if len(named) == 1 and not is_article:
            return named[0]
    return ""


def lone_choice(answer: str, choices: Mapping[str, str]) -> str:
    """Return the letter of the only choice whose words an answer contains, or an empty string."""
    contained = [letter for letter, words in choices.items() if words.lower() in answer.lower()]
    return contained[0] if len(contained) == 1 else ""


def _item(row: Row) -> Item:
    choices = dict(zip(LETTERS, row.options, strict=False))
    asked = " ".join(filter(None, (row.find("hint"), row.text("question"), "There are several options:")))
    number = int(index) if (index := row.text("index")).isdecimal() else None
    if number is None:
        raise ValueError(f"{row.where}: index {index!r} is no number: copy the file again")
    return Item(
        id=str(number),
        page=str(number % ROTATIONS),
        family=str(row.find("category") or "all"),
        text="\n".join([asked, *lettered(row.options), LETTER_ANSWER]),
        answers=(right_letter(row),),
        picture=row.image,
        facts={"choices": json.dumps(choices, ensure_ascii=False)},
    )
