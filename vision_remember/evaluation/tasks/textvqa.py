"""TextVQA: questions about the text in a photograph.

VQA accuracy: "min(# humans that provided that answer / 3, 1)", averaged over the ten sets of nine of the ten people, after EvalAI's
normalisation (`vqa_answer.py`). No OCR tokens are given in the prompt.

Source: Singh et al., "Towards VQA Models That Can Read" (arXiv 1904.08920); `lmms_eval.tasks.textvqa`, split validation.
"""

from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import SHORT_ANSWER, Item, LocalCopy, Scored, percent, read_items
from vision_remember.evaluation.tasks.vqa_answer import agreement, in_plain_words, on_one_line, without_punctuation

MAX_NEW_TOKENS = 32
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order."""
    return read_items(config, "validation", _item)


def score(prediction: str, item: Item) -> float:
    """Return the VQA accuracy of the normalised answer."""
    return agreement(normalise(prediction), [normalise(answer) for answer in item.answers])


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean."""
    return {"accuracy": percent(scored)}


def normalise(answer: str) -> str:
    """Return an answer as EvalAI compares it."""
    words = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return in_plain_words(without_punctuation(on_one_line(words)))


def _item(row: Row) -> Item:
    identity = row.identity("question_id", "index", "id")
    return Item(
        id=identity,
        page=row.page or identity,
        family="all",
        text=row.text("question").capitalize() + SHORT_ANSWER,
        answers=row.texts("answers", "answer"),
        picture=row.image,
    )
