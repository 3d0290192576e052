"""One question about a synthetic page, its answer and the pixels that carry it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vision_remember.data.synthetic.canvas import Box
from vision_remember.data.synthetic.content import LABELS

TITLE_CASE = 0.2  # how often a field name in a question is spelt Total instead of TOTAL


@dataclass(frozen=True)
class Question:
    """A question, the answer as it stands on the page, and the evidence box (x0, y0, x1, y1) in px."""

    question: str
    answer: str
    evidence: Box


def ask(rng: random.Random, phrasings: list[str], names: list[str], answer: str, evidence: Box) -> Question:
    """Fills one of the phrasings with the names; field names are sometimes spelt in title case, as people do."""
    spelt = [name.title() if name in LABELS and rng.random() < TITLE_CASE else name for name in names]
    return Question(question=rng.choice(phrasings).format(*spelt), answer=answer, evidence=evidence)
