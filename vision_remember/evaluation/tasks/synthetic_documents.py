"""Synthetic documents: seeded pages of `data/synthetic/`, every family with its questions.

Pages are drawn once and kept as PNG bytes, so that several models answer them without drawing them again; PNG loses nothing.
"""

import dataclasses
import io
from dataclasses import dataclass
from typing import Literal

from vision_remember.data.schema import Sample
from vision_remember.data.synthetic import SyntheticSamples
from vision_remember.evaluation.tasks import Question, questions_of


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which pages are asked about.

    Attributes:
        count: number of pages; families take turns.
        split: `test` has unseen content, `shift` also unseen fonts and sizes.
        seed: of the pages.
        families: names; None for all.
        questions: the most questions asked about one page; None asks all.
    """

    count: int = 1000
    split: Literal["train", "test", "shift"] = "test"
    seed: int = 0
    families: tuple[str, ...] | None = None
    questions: int | None = None


def questions(config: Config) -> list[Question]:
    """Return the questions of all pages, page by page."""
    samples = SyntheticSamples(
        config.count, split=config.split, seed=config.seed, families=config.families, questions=config.questions
    )
    return [question for index in range(config.count) for question in questions_of(_kept(samples[index]))]


def _kept(sample: Sample) -> Sample:
    """The sample with its pages as PNG bytes."""
    encoded = []
    for image in sample.load_images():
        with io.BytesIO() as buffer:
            image.save(buffer, format="PNG", compress_level=1)
            encoded.append(buffer.getvalue())
    return dataclasses.replace(sample, images=tuple(encoded))
