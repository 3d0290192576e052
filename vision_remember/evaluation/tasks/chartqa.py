"""ChartQA: questions about charts, by people and machine-made.

Relaxed accuracy: "we use a relaxed accuracy measure for the numeric answers to allow a minor inaccuracy that may result from the automatic
data extraction process. We consider an answer to be correct if it is within 5% of the gold answer. For non-numeric answers, we still need
an exact match to consider an answer to be correct." Case does not count; `12%` is 0.12; a gold answer of 0 has to be written as it is.

Source: Masry et al., "ChartQA" (arXiv 2203.10244), end of section 5.1; `lmms_eval.tasks.chartqa.utils.relaxed_correctness`, split test.
"""

from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import Item, LocalCopy, Scored, percent, percent_by_family, read_items

MAX_NEW_TOKENS = 16
TOLERANCE = 0.05
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order; families are `human` and `augmented`."""
    return read_items(config, "test", _item)


def score(prediction: str, item: Item) -> float:
    """Return 1.0 for a number within 5 % of the gold number, or for the gold words."""
    answer = item.answers[0]
    said, gold = _number(prediction), _number(answer)
    if said is not None and gold:
        return float(abs(said - gold) / abs(gold) <= TOLERANCE)
    return float(prediction.lower() == answer.lower())


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean over all questions and of each kind."""
    return {"relaxed": percent(scored), **dict(percent_by_family(scored))}


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _item(row: Row) -> Item:
    identity = row.identity("index", "id")
    return Item(
        id=identity,
        page=row.page or identity,
        family=str(row.find("type", "split") or "all").removesuffix("_test"),
        text=row.text("question", "query") + "\nAnswer the question with a single word.",
        answers=(row.first("answer", "label"),),
        picture=row.image,
    )
