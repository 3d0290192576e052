"""Many tasks, one model: a folder of local copies, or a suite that ships.

A folder is a suite when it has a folder for each benchmark, named as its task: `copies/chartqa/`, `copies/docvqa/`. Every task leaves its
answers, prompts and scores in a folder of its own, and `suite.json` has the headlines.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from vision_remember import plugins
from vision_remember.evaluation.records import write_json
from vision_remember.evaluation.runner import Evaluation, evaluate
from vision_remember.evaluation.tasks import ROOM, benchmark
from vision_remember.model.engine import Engine

SUITES: dict[str, dict[str, dict[str, Any]]] = {
    "synthetic": {split: {"type": "synthetic_documents", "split": split} for split in ("test", "shift")},
}


def load_suite(name: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks of a suite by name.

    Args:
        name: folder of local copies, or one of `SUITES`.
        options: of every task, such as `limit`.

    Raises:
        ValueError: neither a folder nor a suite that ships, or a folder in it that is no benchmark; names what there is.
    """
    known = [task for task in plugins.names(ROOM) if benchmark(task)]
    folder = Path(name)
    if folder.is_dir():
        copies = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        unknown = [copy for copy in copies if copy not in known]
        if unknown or not copies:
            found = f"has {', '.join(unknown)}" if unknown else "has no folder"
            raise ValueError(f"suite {name} {found}: name a folder after each benchmark: {', '.join(known)}")
        return {copy: {"type": copy, "path": str(folder / copy), **options} for copy in copies}
    if name not in SUITES:
        raise ValueError(f"no suite {name}: give a folder of local copies, or one of {', '.join(SUITES)}")
    return {part: {**task, **options} for part, task in SUITES[name].items()}


def evaluate_suite(
    model: str,
    suite: str,
    options: Mapping[str, Any],
    *,
    out: Path | None = None,
    console: Console | None = None,
    tokens_per_image: int | None = None,
) -> dict[str, Evaluation]:
    """Score a model on every task of a suite.

    Args:
        model: model folder or hub id.
        suite: as in `load_suite`.
        options: of every task.
        out: folder for answers and scores; None keeps them in memory.
        console: where progress is shown; None shows none.
        tokens_per_image: vision tokens of an image; None takes what the projector makes by itself.

    Raises:
        ValueError: as `load_suite` and `evaluate` do.
    """
    tasks = load_suite(suite, options)
    for task in tasks.values():
        plugins.build_config(ROOM, task)  # a misspelt option is refused before the first answer
    engine = Engine.load(model, tokens_per_image=tokens_per_image)
    results = {}
    for name, task in tasks.items():
        result = evaluate(engine, task, console=console)
        results[name] = dataclasses.replace(result, about={**result.about, "model": model})
        if out is not None:
            results[name].save(out / name)
    if out is not None:
        write_json(out / "suite.json", summary(results))
    return results


def summary(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the headlines of a suite: `{"suite": {task: {"totals", "mean", "questions"}}, ...}`, without families and answers."""
    first = next(iter(results.values())).about
    shared = {key: first[key] for key in ("model", "architecture", "commit", "versions")}
    tasks = {
        name: {"totals": one.totals, "mean": one.mean, "questions": one.about["questions"]}
        for name, one in results.items()
    }
    return {**shared, "suite": tasks}
