"""How the VQA challenges compare free answers: normalise, then count the people who said the same.

Source: Antol et al., "VQA: Visual Question Answering" (arXiv 1505.00468), and its evaluation code (GT-Vision-Lab/VQA,
PythonEvaluationTools/vqaEvaluation/vqaEval.py), in the form EvalAI and lmms-eval use (`_task_utils/vqa_eval_metric.py`).
"""

import re
from collections.abc import Sequence
from statistics import mean

AGREEING = 3
NUMBERS = "zero one two three four five six seven eight nine ten".split()
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# A word with one apostrophe is restored where it has none, one with more where exactly one is left out; "its", "hell", "were" stay.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
    how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of a normalised answer against the normalised answers of several people.

    "min(# humans that provided that answer / 3, 1)", averaged over all sets that leave one person out.

    Args:
        prediction: normalised.
        answers: one a person, ten in the published data, normalised in the same way.
    """
    others = (sum(answer == prediction for answer in answers) - (answer == prediction) for answer in answers)
    return float(mean(min(1, count / AGREEING) for count in others))


def without_punctuation(text: str) -> str:
    """Return the text without punctuation: a mark beside a blank goes, any other becomes a blank.

    Where a comma stands between two digits, every mark goes. A period stays before a digit. The published code hands a flag to `re.sub`
    where it takes a count, so that the 33rd period and those after it stay; kept, since scores are compared.
    """
    has_digit_comma = re.search(r"\d,+\d", text) is not None
    marks = [mark for mark in PUNCTUATION if has_digit_comma or f"{mark} " in text or f" {mark}" in text]
    text = text.translate({ord(mark): None if mark in marks else " " for mark in PUNCTUATION})
    return re.sub(r"\.(?!\d)", "", text, count=int(re.UNICODE))


def in_plain_words(text: str) -> str:
    """Return the text in lower case, numbers up to ten as digits, articles left out, apostrophes restored."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in ARTICLES)


def on_one_line(text: str) -> str:
    """Return the text with line breaks and tabs as blanks, trimmed."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _restored() -> dict[str, str]:
    spellings = {"somebody'd": "somebodyd"}  # the other way round, as published
    for word in CONTRACTIONS:
        places = [place for place, letter in enumerate(word) if letter == "'"]
        spellings |= {word[:place] + word[place + 1 :]: word for place in places}
    return spellings


_RESTORED = _restored()
_DIGITS = {"none": "0", **{word: str(value) for value, word in enumerate(NUMBERS)}}
