"""The functions of the task `vision_remember_synthetic`: lmms-eval loads this file by its place beside the YAML file."""

from typing import Any

from vision_remember.data.images import decode_image
from vision_remember.evaluation.metrics import METRICS
from vision_remember.evaluation.tasks import load_task


def documents(dataset: Any) -> Any:
    """Return one row a question of the pages that the rows of `pages.json` describe; drawn anew every time, never taken from a cache."""
    return dataset.map(_questions, batched=True, remove_columns=dataset.column_names, load_from_cache_file=False)


def visual(document: dict[str, Any]) -> list[Any]:
    """Return the page."""
    return [decode_image(document["page"])]


def results(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Return what the answer is worth by every metric of `evaluate`."""
    return {name: metric(answers[0], [document["answer"]]) for name, metric in METRICS.items()}


def _questions(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    sets = (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
    asked = [question for options in sets for question in load_task({"type": "synthetic_documents", **options})]
    return {
        "id": [question.id for question in asked],
        "family": [question.family for question in asked],
        "question": [question.text for question in asked],
        "answer": [question.answers[0] for question in asked],
        "page": [question.sample.images[0] for question in asked],
    }
