"""OCRBench: reading in 29 data sets, ten kinds of question, 1,000 questions.

An answer counts when a gold answer stands in it, case and line breaks aside; handwritten formulas (HME100k) are compared without blanks and
with case. The score is the number of right answers, out of 1,000: **points, not per cent**. Full-width letters count as plain ones.

Source: Liu et al., "OCRBench" (arXiv 2305.07895) and its evaluation code; `lmms_eval.tasks.ocrbench.utils`, split test.
"""

from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import Item, LocalCopy, Scored, percent_by_family, read_items

MAX_NEW_TOKENS = 128
FORMULAS = "HME100k"
Config = LocalCopy
_PLAIN = {0x3000: " ", **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}}


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order; families are the kinds of question."""
    return read_items(config, "test", _item)


def score(prediction: str, item: Item) -> float:
    """Return 1.0 when a gold answer stands in the prediction."""
    spelled = _formula if item.facts["dataset"] == FORMULAS else _words
    return float(any(spelled(answer) in spelled(prediction) for answer in item.answers))


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the number of right answers; per kind of question the share in per cent."""
    return {"points": sum(one.score for one in scored), **dict(percent_by_family(scored))}


def _words(text: str) -> str:
    return text.translate(_PLAIN).lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _item(row: Row) -> Item:
    identity = row.identity("index", "id")
    return Item(
        id=identity,
        page=row.page or identity,
        family=row.text("question_type", "category", "type"),
        text=row.text("question").strip(),
        answers=row.texts("answer", "answers"),
        picture=row.image,
        facts={"dataset": str(row.find("dataset", "dataset_name") or "")},
    )
