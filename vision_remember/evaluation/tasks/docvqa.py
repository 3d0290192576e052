"""DocVQA: questions about scanned documents.

Average normalised Levenshtein similarity: "s = 1 - NL(a, o) if NL(a, o) < 0.5, else 0", the best over the gold answers, where NL is the
edit distance over the length of the longer string. The challenge's own script, followed here as in lmms-eval, keeps a similarity of
exactly 0.5, and divides by the length before blanks are squeezed; `metrics.anls` follows the equation to the letter instead.

Source: Mathew et al., "DocVQA: A Dataset for VQA on Document Images" (arXiv 2007.00398); Biten et al., "Scene Text Visual
Question Answering" (arXiv 1905.13648), equation 1; `lmms_eval.api.metrics.anls`, split validation. Edit distance: the package `anls`.
"""

from collections.abc import Sequence

from anls.metrics.dist import levenshtein_distance

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import SHORT_ANSWER, Item, LocalCopy, Scored, percent, read_items

MAX_NEW_TOKENS = 32
THRESHOLD = 0.5
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order."""
    return read_items(config, "validation", document_item)


def score(prediction: str, item: Item) -> float:
    """Return the similarity to the nearest gold answer, 0 below one half."""
    similarity = 1 - min(_distance(prediction, answer) for answer in item.answers)
    return similarity if similarity >= THRESHOLD else 0.0


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean."""
    return {"anls": percent(scored)}


def document_item(row: Row) -> Item:
    """Return the question of a row."""
    identity = row.identity("questionId", "question_id", "index", "id")
    return Item(
        id=identity,
        page=row.page or identity,
        family="all",
        text=row.text("question") + SHORT_ANSWER,
        answers=row.texts("answers", "answer"),
        picture=row.image,
    )


def _distance(prediction: str, answer: str) -> float:
    length = max(len(answer.upper()), len(prediction.upper()))
    squeezed = (" ".join(text.lower().split()) for text in (answer, prediction))
    return levenshtein_distance(*squeezed) / length if length else 0.0
