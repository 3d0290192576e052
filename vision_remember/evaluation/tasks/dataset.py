"""A data set of the user's own, in any layout that training reads: every user turn is a question, the turn after it the answer."""

from dataclasses import dataclass

from vision_remember.data.sources import load_samples
from vision_remember.evaluation.tasks import Question, questions_of


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which data set, and how much of it.

    Attributes:
        path: a folder or file of `data/sources.py`.
        limit: the first samples only; None takes all.
    """

    path: str
    limit: int | None = None


def questions(config: Config) -> list[Question]:
    """Return the questions of the samples in order; images are read when they are asked about."""
    samples = load_samples(config.path)
    count = len(samples) if config.limit is None else min(config.limit, len(samples))
    return [question for index in range(count) for question in questions_of(samples[index])]
