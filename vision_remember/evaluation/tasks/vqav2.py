"""VQAv2: open questions about photographs.

"min(# humans that provided that answer / 3, 1)", averaged over the ten sets of nine of the ten people: `vqa_answer.py`. The published code
normalises only where people disagree; EvalAI and lmms-eval always do, and so does this. Papers print test-dev, whose answers are kept by
a server; a local copy has the split validation.

Source: Goyal et al., "Making the V in VQA Matter" (arXiv 1612.00837); `lmms_eval.tasks.vqav2`, split validation.
"""

from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import (
    SHORT_ANSWER,
    Item,
    LocalCopy,
    Scored,
    percent,
    percent_by_family,
    read_items,
)
from vision_remember.evaluation.tasks.vqa_answer import agreement, in_plain_words, on_one_line, without_punctuation

MAX_NEW_TOKENS = 16
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order; families are the kinds of answer: number, other, yes/no."""
    return read_items(config, "validation", _item)


def score(prediction: str, item: Item) -> float:
    """Return the VQA accuracy of the normalised answer."""
    return agreement(normalise(prediction), [normalise(answer) for answer in item.answers])


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean, and that of each kind of answer."""
    return {"accuracy": percent(scored), **dict(percent_by_family(scored))}


def normalise(answer: str) -> str:
    """Return an answer as the challenge compares it."""
    return in_plain_words(without_punctuation(on_one_line(answer)))


def _item(row: Row) -> Item:
    identity = row.identity("question_id", "index", "id")
    return Item(
        id=identity,
        page=row.page or identity,
        family=row.find("answer_type") or "all",
        text=row.text("question") + SHORT_ANSWER,
        answers=row.texts("answers", "answer"),
        picture=row.image,
    )
