"""Checkpoint folders that are either complete or absent.

A checkpoint is written into `step-N.tmp-<uuid>`, every file synced, described by a manifest with sizes and sha256, and only then renamed
to `step-N`. Whatever the moment of a kill, the newest complete folder is whole and a leftover is recognised and cleaned. What the files
hold is the business of `state.py`; here is only the protocol.

Source: the protocol of PyTorch DCP (complete only with its metadata, written last), without its pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"
SCHEMA = 1
KEPT = 2  # complete checkpoints left in a run folder
STEP = re.compile(r"step-(\d+)")
log = logging.getLogger(__name__)


def save(folder: Path, step: int, write: Callable[[Path], None], *, facts: dict[str, Any]) -> Path:
    """Writes checkpoint `step-N`, makes it the latest and deletes the older ones but `KEPT`.

    Args:
        folder: holds the checkpoints of one run.
        step: optimizer steps done.
        write: puts the files into the folder it is given.
        facts: what resuming must agree with; stored in the manifest.

    Returns:
        The finished folder. One that is already complete for this step is left as it is.

    Raises:
        ValueError: the disk refused, with needed and free bytes; earlier checkpoints are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = of_step(folder, step)
    if is_complete(target):
        return target
    fresh = folder / f"step-{step}.tmp-{uuid.uuid4().hex}"
    try:
        fresh.mkdir()
        write(fresh)
        files = {}
        for path in sorted(path for path in fresh.rglob("*") if path.is_file()):
            sync(path)
            files[str(path.relative_to(fresh))] = {"size": path.stat().st_size, "sha256": sha256(path)}
        write_json(fresh / MANIFEST, {"schema": SCHEMA, "step": step, **facts, "files": files})
        sync(fresh)
        if target.exists():
            shutil.rmtree(target)  # of this step but incomplete: nothing can be resumed from it
        os.rename(fresh, target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        needed = max((_size(other) for other in _steps(folder)), default=_size(fresh))
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        shutil.rmtree(fresh, ignore_errors=True)
        raise ValueError(
            f"checkpoint {target} could not be written ({error}): it needs about {needed:,} bytes, {free:,} are free; "
            "earlier checkpoints are intact, so make room and resume"
        ) from error
    _point(folder, target)
    _prune(folder)
    return target


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step}"


def candidates(folder: Path) -> Iterator[Path]:
    """The complete checkpoints, newest first; a newer folder that is incomplete is passed over with a loud line."""
    for path in _steps(folder):
        if is_complete(path):
            yield path
        else:
            log.warning("%s is incomplete: falling back to an older checkpoint", path)


def is_complete(path: Path) -> bool:
    """Manifest present and every file of the stated size."""
    try:
        files = read_manifest(path)["files"]
        return all((path / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it is written."""
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def verify(path: Path) -> dict[str, Any]:
    """The manifest, after comparing every file with its hash.

    Raises:
        ValueError: a file was changed since it was written.
    """
    manifest = read_manifest(path)
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {manifest['schema']}, this version reads {SCHEMA}")
    for name, entry in manifest["files"].items():
        if sha256(path / name) != entry["sha256"]:
            raise ValueError(f"{path / name} is not what was written: its sha256 differs from the manifest's")
    return manifest


def clean(folder: Path) -> None:
    """Removes what killed writers left behind."""
    for leftover in folder.glob("step-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder beside `target` and swaps it in, so that `target` is never half written."""
    fresh, old = (target.with_name(f"{target.name}.{kind}-{uuid.uuid4().hex}") for kind in ("tmp", "old"))
    fresh.mkdir(parents=True)
    write(fresh)
    for path in fresh.rglob("*"):
        if path.is_file():
            sync(path)
    sync(fresh)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Writes a file by way of a temporary one, so that `path` always holds a whole document."""
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_text(text, encoding="utf-8")
    sync(fresh)
    os.replace(fresh, path)


def sync(path: Path) -> None:
    """Forces a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _steps(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _point(folder: Path, target: Path) -> None:
    write_json(folder / "latest.json", {"checkpoint": target.name})
    sync(folder)


def _prune(folder: Path) -> None:
    complete = [path for path in _steps(folder) if is_complete(path)]
    for path in complete[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
