"""GQA: compositional questions about photographs, one short answer each.

Accuracy: the answer is the gold answer, case and punctuation aside.

Source: Hudson and Manning, "GQA" (arXiv 1902.09506); `lmms_eval.api.metrics.exact_match` with `ignore_case` and
`ignore_punctuation`, split testdev (balanced).
"""

import string
from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import SHORT_ANSWER, Item, LocalCopy, Scored, percent, read_items

MAX_NEW_TOKENS = 16
Config = LocalCopy
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order."""
    return read_items(config, "testdev", _item)


def score(prediction: str, item: Item) -> float:
    """Return 1.0 for the gold answer, case and punctuation aside."""
    return float(same_letters(prediction, item.answers[0]))


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean."""
    return {"accuracy": percent(scored)}


def same_letters(said: str, answer: str) -> bool:
    """Whether two texts are equal without case and ASCII punctuation."""
    return said.lower().translate(_PUNCTUATION) == answer.lower().translate(_PUNCTUATION)


def _item(row: Row) -> Item:
    identity = row.identity("id", "question_id", "index")
    return Item(
        id=identity,
        page=row.page or identity,
        family="all",
        text=row.text("question") + SHORT_ANSWER,
        answers=(row.text("answer"),),
        picture=row.image,
    )
