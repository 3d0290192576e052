"""InfoVQA: questions about infographics, whose answers stand in the picture, in the question, or are counted.

Average normalised Levenshtein similarity with threshold 0.5, as in `docvqa.py`: "s = 1 - NL(a, o) if NL(a, o) < 0.5, else 0".

Source: Mathew et al., "InfographicVQA" (arXiv 2104.12756); `lmms_eval.tasks.infovqa`, split validation.
"""

from vision_remember.evaluation.benchmark import Item, LocalCopy, read_items
from vision_remember.evaluation.tasks.docvqa import document_item, score, totals

__all__ = ["MAX_NEW_TOKENS", "Config", "questions", "score", "totals"]

MAX_NEW_TOKENS = 32
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order."""
    return read_items(config, "validation", document_item)
