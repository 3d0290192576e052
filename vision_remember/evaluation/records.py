"""One answered question as a record, and the answers file that keeps them beside their scores."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vision_remember.evaluation.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class Record:
    """A question, what the model said, and what it is worth.

    Attributes:
        id: of the question; unique within its task.
        page: of the sample the question is about; the unit of every bootstrap.
        family: the group its score is reported in.
        question: the user's words, as the model received them.
        answers: accepted answers.
        prediction: the model's greedy answer.
        exact_match, anls: in [0, 1].
    """

    id: str
    page: str
    family: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    exact_match: float
    anls: float


def score_answer(
    *, id: str, page: str, family: str, question: str, answers: tuple[str, ...], prediction: str
) -> Record:
    """Return the record of one answer, scored by every metric."""
    scores = {name: metric(prediction, answers) for name, metric in METRICS.items()}
    return Record(id=id, page=page, family=family, question=question, answers=answers, prediction=prediction, **scores)


def write_answers(path: Path, records: Iterable[Any]) -> None:
    """Write one JSON object a line, of any dataclass; the file appears complete or not at all."""
    write_text(path, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def read_answers(path: Path) -> list[Record]:
    """Read an answers file.

    Raises:
        ValueError: a line is not a record; names the line.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            records.append(Record(**{**fields, "answers": tuple(fields["answers"])}))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}:{number} is not an answer record ({error}): evaluate again to write it anew"
            ) from error
    return records


def write_json(path: Path, content: object) -> None:
    """Write indented JSON without NaN; the file appears complete or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name, flush it to the disk, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
