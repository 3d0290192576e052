"""Which pages a report shows: chosen by rule, not by hand."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from vision_remember.evaluation.records import Record
from vision_remember.evaluation.tasks import Question

PER_FAMILY = 2


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One question as every row answered it.

    Attributes:
        png: the page, encoded.
        size: width and height in px.
        evidence: box (x0, y0, x1, y1) in px that shows the answer, where known.
        predictions: answer of each row and whether it matched exactly.
    """

    family: str
    question: str
    answer: str
    png: bytes
    size: tuple[int, int]
    evidence: tuple[float, float, float, float] | None
    predictions: dict[str, tuple[str, bool]]


def choose(questions: Sequence[Question], answers: Mapping[str, Sequence[Record]]) -> list[Specimen]:
    """Take the first questions of each family that some rows answer right and others wrong, each from another page.

    A family on which the rows always agree is shown by its first questions instead.

    Args:
        questions: the task, in order.
        answers: records of each row, in the same order.
    """
    chosen: dict[str, list[int]] = {}
    disputed = [len({records[i].exact_match for records in answers.values()}) > 1 for i in range(len(questions))]
    for wanted in (True, False):
        for index, question in enumerate(questions):
            shown = chosen.setdefault(question.family, [])
            is_new = question.page not in {questions[other].page for other in shown}
            if disputed[index] is wanted and is_new and len(shown) < PER_FAMILY:
                shown.append(index)
    return [
        _specimen(questions[i], i, answers) for indices in chosen.values() for i in indices if questions[i].num_images
    ]


def _specimen(question: Question, index: int, answers: Mapping[str, Sequence[Record]]) -> Specimen:
    image = question.request().images[0]
    encoded = io.BytesIO()
    shown = image.copy()
    shown.thumbnail((768, 768), Image.Resampling.LANCZOS)
    shown.save(encoded, format="PNG", optimize=True)
    return Specimen(
        family=question.family,
        question=question.text,
        answer=question.answers[0],
        png=encoded.getvalue(),
        size=image.size,
        evidence=question.evidence,
        predictions={
            row: (records[index].prediction, records[index].exact_match == 1.0) for row, records in answers.items()
        },
    )
