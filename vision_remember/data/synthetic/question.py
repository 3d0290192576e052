"""One question about a synthetic page, its answer and the pixels that carry it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vision_remember.data.synthetic.canvas import Box
from vision_remember.data.synthetic.content import LABELS

TITLE_CASE = 0.2  # how often a field name in a question is spelt Total instead of TOTAL


@dataclass(frozen=True)
class Question:
    """A question, the answer as it stands on the page, and the evidence box (x0, y0, x1, y1) in px.

    Questions of a `level` above 0 are exercises, asked in pretraining alone: a language model practises with them the parts of what the
    others want at once (1) and, when it can do those, the same with names in any order and more comparisons (2).
    """

    question: str
    answer: str
    evidence: Box
    level: int = 0


def ask(rng: random.Random, phrasings: list[str], names: list[str], answer: str, evidence: Box) -> Question:
    """Fills one of the phrasings with the names; field names are sometimes spelt in title case, as people do."""
    spelt = [name.title() if name in LABELS and rng.random() < TITLE_CASE else name for name in names]
    return Question(question=rng.choice(phrasings).format(*spelt), answer=answer, evidence=evidence)


def exercise(level: int, question: str, answer: str, evidence: Box) -> Question:
    """A question for pretraining alone."""
    return Question(question, answer, evidence, level=level)
