"""Webdataset tars, read in place: `0007.json` with `0007.png` (or `0007.0.png`, `0007.1.png`) is one sample.

The archive is indexed once and its members are read by position, so nothing is unpacked, no member name ever becomes a path, and samples
without an image may stand among those with one. (The webdataset loader of `datasets` copies every tar into its cache, refuses mixed
samples, and keeps the last of two equal JSON keys.)
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vision_remember.data.images import DEFAULT_LIMITS
from vision_remember.data.records import read_record
from vision_remember.data.schema import DataError, Problem, Sample, name_sample
from vision_remember.data.sources import FileSamples, file_error
from vision_remember.data.strict_json import JSONError, parse

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_JSON_BYTES = 20 * 2**20


@dataclass(kw_only=True)
class _Group:
    """Members that share a key: where the record and the images lie, as (first byte, length)."""

    shard: int
    key: str
    record: tuple[int, int] | None = None
    images: list[tuple[str, int, int]] = field(default_factory=list)


class ArchiveSamples(FileSamples):
    """Samples in tar shards.

    Args:
        files: The shards, uncompressed, in order.

    Raises:
        DataError: A shard is not a tar, is cut off, or holds a link or a device.
    """

    def __init__(self, files: Sequence[Path]):
        super().__init__(files)
        self._groups = [group for shard, file in enumerate(files) for group in _index(shard, file)]

    def __len__(self) -> int:
        return len(self._groups)

    def read(self, index: int) -> Sample:
        group = self._groups[index]
        self.check_unchanged(group.shard)
        source = self.files[group.shard].name
        where = name_sample(f"{source}#{index}", group.key)
        if group.record is None:
            raise _problem("data.record", where, "the images have no .json member", f"add {group.key}.json")
        if group.record[1] > MAX_JSON_BYTES:
            raise _problem("data.record", where, f"{group.record[1]} bytes of JSON, limit {MAX_JSON_BYTES}", "split it")
        with open(self.files[group.shard], "rb") as file:

            def member(start: int, length: int) -> bytes:
                file.seek(start)
                return file.read(length)

            try:
                record = parse(member(*group.record))
            except JSONError as error:
                raise _problem(error.code, where, f"{error.why} (byte {error.offset or 0})", error.fix) from None
            # One byte beyond the limit is enough for the decoder to refuse the image by its size.
            images = [
                member(start, min(length, DEFAULT_LIMITS.max_bytes + 1)) for _, start, length in sorted(group.images)
            ]
        if isinstance(record, dict):
            record = {"id": group.key} | {key: value for key, value in record.items() if key not in ("image", "images")}
            record["images"] = images
        return read_record(record, root="", source=source, number=index)


def _index(shard: int, file: Path) -> list[_Group]:
    groups: dict[str, _Group] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg():
                    why = f"member {ascii(member.name)[:80]} is a link or a device"
                    raise file_error(file, "data.archive", why, "pack plain files only")
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                group = groups.setdefault(key, _Group(shard=shard, key=key))
                if ending == "json":
                    group.record = (member.offset_data, member.size)
                elif ending.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                    group.images.append((ending, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        why = f"cannot be read as a tar ({ascii(str(error)[:120])[1:-1]})"
        raise file_error(file, "data.archive", why, "write the archive again, uncompressed") from None
    if groups and not any(group.record for group in groups.values()):
        raise file_error(file, "data.archive", "no member ends in .json", "pack one record beside each image")
    return list(groups.values())


def _problem(code: str, where: str, why: str, fix: str) -> DataError:
    return DataError.of([Problem(code=code, where=where, why=why, fix=fix)])
