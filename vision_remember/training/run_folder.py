"""The folder of one run: what was asked, who holds it, and what resuming it must agree with.

recipe.yaml      the resolved recipe            metrics.jsonl   one line per step
run.json         versions, seed, data, parts    tensorboard/    event files, where asked for
checkpoints/     see checkpoint.py              model/          the trained model, and trainer_state.json: how it learned
summary.json     what the training took
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from vision_remember.training.checkpoint import write_json, write_text
from vision_remember.training.recipe import Recipe

PACKAGES = ("accelerate", "numpy", "pillow", "safetensors", "tokenizers", "torch", "transformers")
RUN = "run.json"
SUMMARY = "summary.json"
HISTORY = "trainer_state.json"  # in the model's folder; the name and keys are those of transformers' Trainer
CURVE_POINTS = 100
STARTING = ("lock", "recipe.yaml.tmp")  # of a run killed before its recipe was written
# Keys of the recipe that change how a run is watched, never what it computes.
WATCHING = (
    "name",
    "output_dir",
    "training.save_every",
    "training.log_every",
    "training.num_workers",
    "training.report_to",
)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder for this process; the kernel lets go when the process dies, however it dies.

    Raises:
        ValueError: another process writes here (its pid and start), or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}; choose another output folder") from None
    with file:
        _take(file, folder)
        yield


def prepare(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Puts the resolved recipe into the folder, or checks that a resumed run asks for the same.

    A run that never took a step is started anew, so that the same command always leads on and a first mistake is mended in place.

    Raises:
        ValueError: the folder holds another run, or the recipe of a resumed run changed (both values).
    """
    saved = folder / "recipe.yaml"
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in STARTING)
    if foreign and not saved.exists():
        raise ValueError(
            f"{folder} holds {', '.join(foreign[:4])}, which no run of ours wrote; choose another output folder"
        )
    if not _has_started(folder):
        write_text(saved, recipe.to_yaml())
        return
    if not resume:
        raise ValueError(f"{folder} already holds a run: resume it or choose another output folder")
    before, now = _flat(yaml.safe_load(saved.read_text(encoding="utf-8"))), _flat(recipe.to_dict())
    changed = [
        key for key in sorted({*before, *now}) if not key.startswith(WATCHING) and before.get(key) != now.get(key)
    ]
    if changed:
        differences = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise ValueError(
            f"{folder} was started with another recipe: {differences}. Resume with the old values or start anew"
        )


def is_finished(folder: Path) -> bool:
    """Whether the run has written its model and summary."""
    return (folder / "model").is_dir() and (folder / SUMMARY).exists()


def learning_curve(folder: Path) -> dict[str, list[float]]:
    """The training loss of a run as `{"step", "loss"}` in at most 100 points, each the mean of neighbouring steps."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    points = [(line["step"], line["loss"]) for line in map(json.loads, lines)]
    size = -(-len(points) // CURVE_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return {
        "step": [group[-1][0] for group in groups],
        "loss": [sum(loss for _, loss in group) / len(group) for group in groups],
    }


def history(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What `trainer_state.json` holds, so that a model can say how it was trained wherever it is copied to."""
    curve = learning_curve(folder)
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "global_step": recipe.training.steps,
        "train_batch_size": recipe.training.batch_size * recipe.training.accumulation,
        "log_history": [{"step": step, "loss": loss} for step, loss in zip(*curve.values(), strict=True)],
    }


def identify(folder: Path, facts: dict[str, Any]) -> None:
    """Writes run.json, or checks that a run that has started still has the same data and processor.

    Raises:
        ValueError: one of them changed; both values.
    """
    path = folder / RUN
    if not (_has_started(folder) and path.exists()):
        write_json(path, facts)
        return
    before = json.loads(path.read_text(encoding="utf-8"))["must_agree"]
    for key, value in facts["must_agree"].items():
        if before[key] != value:
            raise ValueError(
                f"{folder}: {key} was {before[key]} when the run started and is {value} now; it cannot be resumed"
            )


def environment(seed: int) -> dict[str, Any]:
    """What bit equality depends on besides the recipe: versions, threads, machine."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), "vision-remember": _own_version(), **versions},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "machine": platform.machine(),
    }


def digest(value: Any) -> str:
    """Short hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _has_started(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    took_a_step = metrics.exists() and metrics.stat().st_size > 0
    return took_a_step or (folder / "checkpoints").exists() or (folder / "model").exists()


def _take(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise ValueError(
            f"{folder} is being written by another process ({file.read().strip()}); wait or stop it"
        ) from None
    file.truncate(0)
    file.write(f"pid {os.getpid()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()


def _own_version() -> str:
    try:
        return importlib.metadata.version("vision-remember")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, child in items
        for key, leaf in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }
