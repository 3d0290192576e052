"""Files of samples: a path in, a lazy sequence of `Sample` out.

    *.json     LLaVA JSON, a list of records            *.parquet  one record a row, images as bytes or names
    *.jsonl    one record a line                        *.tar      webdataset: `7.json` and `7.png` make one sample
    a folder   its data.json or data.jsonl, or else all its *.parquet or *.tar shards

Nothing is loaded but positions: a record is read and checked when it is asked for, and workers share the file's pages. Image names are
relative to the folder of the file unless `images` names another one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_remember.data.records import read_record
from vision_remember.data.schema import DataError, Problem, Sample, name_sample
from vision_remember.data.strict_json import JSONError, line_records, list_records, parse, place

LAYOUTS = (".json", ".jsonl", ".parquet", ".tar")


def load_samples(path: str | Path, *, images: str | Path | None = None) -> FileSamples:
    """Opens a data set.

    Args:
        path: A file of one of the layouts, or a folder that holds one.
        images: Folder that image names are relative to; by default the folder of the file.

    Returns:
        A sequence that reads sample i when it is asked for and raises `DataError` if that one is malformed.

    Raises:
        DataError: Nothing there, an unknown layout, a file whose records cannot even be told apart, or no records at all.
    """
    files = _data_files(Path(path))
    root = str(images if images is not None else files[0].parent)
    suffix = files[0].suffix
    samples: FileSamples
    if suffix == ".parquet":
        from vision_remember.data.parquet import (
            ParquetSamples,
        )  # the only layout that needs `datasets`, seconds to import

        samples = ParquetSamples(files, root)
    elif suffix == ".tar":
        from vision_remember.data.archive import ArchiveSamples

        samples = ArchiveSamples(files)
    else:
        samples = JSONSamples(files[0], root)
    if not len(samples):
        raise file_error(files[0], "data.empty", "there are no samples in it", "give it at least one record")
    return samples


class FileSamples(Sequence[Sample], ABC):
    """Samples that live in files. Notices when a file is no longer the one that was indexed.

    Args:
        files: The files, in order.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = tuple(files)
        self._versions = [_version(file) for file in files]

    @property
    def fingerprint(self) -> str:
        """Sha256 of the files' contents; images outside them are not part of it."""
        digest = hashlib.sha256()
        for number, file in enumerate(self.files):
            self.check_unchanged(number)
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    def check_unchanged(self, number: int) -> None:
        """Raises `DataError` if file `number` has another size or time than when it was indexed."""
        if (found := _version(self.files[number])) != self._versions[number]:
            was, now = self._versions[number][0], found[0]
            raise file_error(
                self.files[number],
                "data.changed",
                f"changed after it was indexed ({was} bytes then, {now} now)",
                "start again",
            )

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Sample `index`, 0 <= index < len."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.read(number) for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.read(index % len(self))


class JSONSamples(FileSamples):
    """LLaVA JSON and JSONL, mapped into memory and cut into records by position."""

    def __init__(self, file: Path, root: str):
        super().__init__([file])
        self.root = root
        self._map: bytes | mmap.mmap | None = None
        try:
            self._spans: array[int] = (line_records if file.suffix == ".jsonl" else list_records)(self._data())
        except JSONError as error:
            raise self._error(error, 0, str(file.name)) from None

    def __len__(self) -> int:
        return len(self._spans) // 2

    def read(self, index: int) -> Sample:
        self.check_unchanged(0)
        start, end = self._spans[2 * index : 2 * index + 2]
        source = self.files[0].name
        try:
            record = parse(self._data()[start:end])
        except JSONError as error:
            raise self._error(error, start, name_sample(f"{source}#{index}", str(index))) from None
        return read_record(record, root=self.root, source=source, number=index)

    def _data(self) -> bytes | mmap.mmap:
        if self._map is None:
            with open(self.files[0], "rb") as file:
                empty = os.fstat(file.fileno()).st_size == 0
                self._map = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def _error(self, error: JSONError, start: int, where: str) -> DataError:
        why = f"{error.why} ({place(self._data(), start + (error.offset or 0))})"
        return DataError.of([Problem(code=error.code, where=where, why=why, fix=error.fix)])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}


def file_error(file: Path, code: str, why: str, fix: str) -> DataError:
    """A `DataError` about a whole file."""
    return DataError.of([Problem(code=code, where=ascii(file.name)[1:-1], why=why, fix=fix)])


def _data_files(path: Path) -> list[Path]:
    if path.is_dir():
        for name in ("data.json", "data.jsonl"):
            if (path / name).is_file():
                return [path / name]
        shards = {suffix: sorted(path.glob(f"*{suffix}")) for suffix in LAYOUTS}
        found = [suffix for suffix, files in shards.items() if files]
        if len(found) == 1 and (len(shards[found[0]]) == 1 or found[0] in (".parquet", ".tar")):
            return shards[found[0]]
        why = "the folder has no data.json, data.jsonl, *.parquet or *.tar"
        if found:
            why = f"the folder has several data files ({', '.join(file.name for suffix in found for file in shards[suffix][:2])})"
        raise file_error(path, "data.missing", why, "name the file")
    if not path.is_file():
        why = "is not a regular file" if path.exists() else "does not exist"
        raise file_error(path, "data.missing", why, "check the name")
    if path.suffix not in LAYOUTS:
        raise file_error(
            path, "data.layout", f"unknown layout {ascii(path.suffix)}", f"use one of {', '.join(LAYOUTS)}"
        )
    return [path]


def _version(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        raise file_error(file, "data.changed", "is gone", "put it back and start again") from None
    return status.st_size, status.st_mtime_ns
