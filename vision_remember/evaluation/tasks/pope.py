"""POPE: is there a ... in the image? Half of the objects are not, and a model that imagines them says yes.

Accuracy, precision, recall and F1 of the answer `yes`, and the share of `yes` among the answers. An answer has to be `yes` or `no`, case
aside; anything else is wrong, and neither a yes nor a no. (lmms-eval's `pope_yes_ratio` is the share of `yes` among the *gold* answers,
which no model can change; the paper's is of the model's answers, and so is this.)

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv 2305.10355); `lmms_eval.tasks.pope`,
split test.
"""

from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import SHORT_ANSWER, Item, LocalCopy, Scored, percent, read_items

MAX_NEW_TOKENS = 128
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order; families say how the absent objects were drawn: random, popular, adversarial."""
    return read_items(config, "test", _item)


def score(prediction: str, item: Item) -> float:
    """Return 1.0 for the gold `yes` or `no`."""
    return float(_word(prediction) == item.answers[0])


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return F1, accuracy, precision, recall and the share of `yes`, in per cent."""
    pairs = [(_word(one.prediction), one.answers[0]) for one in scored]
    right, wrong, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision = right / (right + wrong) if right + wrong else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    f1 = 2 * (precision * recall) / (precision + recall) if right else 0.0
    yes = sum(said == "yes" for said, _ in pairs) / len(pairs)
    return {
        "f1": 100 * f1,
        "accuracy": percent(scored),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "said_yes": 100 * yes,
    }


def _word(text: str) -> str:
    return text.lower().strip()


def _item(row: Row) -> Item:
    category = str(row.find("category") or "all")
    number = row.text("id", "index", "question_id")
    return Item(
        id=f"{category}-{number}",
        page=row.page or number,
        family=category,
        text=row.text("question").strip() + SHORT_ANSWER,
        answers=(_word(row.text("answer")),),
        picture=row.image,
    )
