"""Tables of other people's making: local copies of published benchmarks, a row at a time, images apart.

A copy is a folder (or its one file) that holds one of

    *.parquet   Hub shards, here or in `data/`; of several splits the one that is asked for (`validation-00000-of-00006.parquet`)
    *.tsv       VLMEvalKit: a header, then a row a line; column `image` is base64, or the index of the row that carries the picture
    *.json      a list of records, an object whose `data` is that list, or an object of records by id; `*.jsonl`: a record a line

Images that are not in the rows are files named by them, below the folder or its `images/`, or rows of `images/*.parquet` (`id`, `image`).
Nothing is fetched. Text columns are read at once, images when they are asked for, all by the one decoder.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_remember.data.schema import ImageFile, ImageRef
from vision_remember.data.strict_json import JSONError, parse

IMAGE_COLUMNS = ("image", "image_path", "imgname", "image_name", "file_name")
IMAGE_IDS = ("image_id", "imageId", "image_source", "docId")
BLOCK = 1000  # rows read at once
SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
SPLITS = {"train", "test", "validation", "val", "dev", "testdev"}
MISSING = ("", "nan")  # how pandas writes a cell that is not there


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        values: its columns, images left out.
        where: file and number, for messages.
        number: counted from 0.
        image: reads the reference of its picture; raises `ValueError` naming the row.
    """

    values: Mapping[str, Any]
    where: str
    number: int
    image: Callable[[], ImageRef]

    def find(self, *names: str) -> Any:
        """The value of the first of these columns that has one, or None."""
        present = (self.values.get(name) for name in names)
        return next((value for value in present if not _is_missing(value)), None)

    def text(self, *names: str) -> str:
        """The same as text; raises `ValueError` where none has a value."""
        if (value := self.find(*names)) is None:
            has = ", ".join(self.values)
            raise ValueError(
                f"{self.where} has no {' or '.join(names)}; it has {has}: take the split that has gold answers"
            )
        return str(value)

    def texts(self, *names: str) -> tuple[str, ...]:
        """A list column as texts, or a single value, or a list written as text; at least one."""
        value: Any = self.find(*names)
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pass  # an answer in brackets
        listed = value if isinstance(value, list) else [self.text(*names)]
        if not listed:
            raise ValueError(f"{self.where}: {' or '.join(names)} is empty: take the split that has gold answers")
        return tuple(str(item["answer"] if isinstance(item, dict) else item) for item in listed)

    def first(self, *names: str) -> str:
        """The first item of a list column, or a single value as it is written, brackets included."""
        value = self.find(*names)
        return self.texts(*names)[0] if isinstance(value, list) else self.text(*names)

    def identity(self, *names: str) -> str:
        """What the first of these columns calls the row, or else its number."""
        return str(self.number) if (found := self.find(*names)) is None else str(found)

    @property
    def options(self) -> tuple[str, ...]:
        """The choices of a multiple-choice question: a list `options`, or the columns A, B, C, ... as far as they are filled."""
        if self.find("options", "choices") is not None:
            return self.texts("options", "choices")
        return tuple(str(self.find(letter)) for letter in "ABCDEFGH" if self.find(letter) is not None)

    @property
    def page(self) -> str | None:
        """What names its picture, where a column does: questions about one picture are resampled together."""
        found = self.find(*IMAGE_IDS, "image_path", "imgname")
        return None if found is None else str(found)


def read_table(path: str | Path, *, split: str) -> Iterator[Row]:
    """Yields the rows of a local copy.

    Args:
        path: The folder or file.
        split: Which shards to take where a folder holds several splits, by the start of their names.

    Raises:
        ValueError: Nothing readable there, several candidates, or a malformed file; names it and the cure.
    """
    files = _files(Path(path), split)
    root = files[0].parent.parent if files[0].parent.name == "data" else files[0].parent
    if files[0].suffix == ".parquet":
        yield from _parquet_rows(files, root)
    else:
        records = _tsv_records(files[0]) if files[0].suffix == ".tsv" else _json_records(files[0])
        yield from _record_rows(records, files[0].name, root)


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or value in MISSING


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    for folder in (path, path / "data"):
        for suffixes in ((".parquet",), (".tsv",), (".json", ".jsonl")):
            found = sorted(file for file in folder.glob("*") if file.suffix in suffixes)
            named = [file for file in found if _split(file) == split] or found
            splits = {_split(file) for file in named}
            if len(named) > 1 and (suffixes != (".parquet",) or len(splits) > 1) or splits & SPLITS - {split}:
                names = ", ".join(file.name for file in named[:4])
                raise ValueError(f"{folder} holds {names}; the benchmark is the split {split}: name the file to take")
            if named:
                return named
    raise ValueError(f"{path} holds no *.parquet, *.tsv, *.json or *.jsonl: put a copy of the benchmark there")


def _split(file: Path) -> str:
    return file.stem.split("-")[0]


def _parquet_rows(files: Sequence[Path], root: Path) -> Iterator[Row]:
    # The only layout that needs `datasets`, which takes seconds to import.
    from vision_remember.data.raw_parquet import load_parquet

    table = load_parquet(files)
    pictures = [name for name in IMAGE_COLUMNS if name in table.column_names][:1]

    def image(number: int, names: Mapping[str, Any]) -> ImageRef:
        cell = table[number][pictures[0]] if pictures else None
        return _reference(cell, names, root, f"{files[0].name}#{number}")

    for start in range(0, len(table), BLOCK):
        for offset, values in enumerate(table.rows(start, start + BLOCK, without=pictures)):
            yield _row(values, files[0].name, start + offset, image)


def _record_rows(records: Sequence[Mapping[str, Any]], source: str, root: Path) -> Iterator[Row]:
    def image(number: int, names: Mapping[str, Any]) -> ImageRef:
        cell = next((records[number][name] for name in IMAGE_COLUMNS if records[number].get(name)), None)
        return _reference(cell, names, root, f"{source}#{number}")

    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"{source}#{number} is no record with named columns: mend the file")
        yield _row({key: value for key, value in record.items() if not isinstance(value, bytes)}, source, number, image)


def _row(
    values: Mapping[str, Any], source: str, number: int, image: Callable[[int, Mapping[str, Any]], ImageRef]
) -> Row:
    names = {key: values[key] for key in IMAGE_IDS if values.get(key)}  # all that the picture needs of a row
    return Row(values=values, where=f"{source}#{number}", number=number, image=lambda: image(number, names))


def _tsv_records(file: Path) -> list[dict[str, Any]]:
    limit = csv.field_size_limit(sys.maxsize)  # a page in base64 is longer than csv expects of a cell
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            records: list[dict[str, Any]] = list(csv.DictReader(lines, delimiter="\t"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as TSV ({error}); copy it again") from None
    finally:
        csv.field_size_limit(limit)
    cells = {record.get("index"): record.get("image") for record in records}
    for number, record in enumerate(records):
        if None in record:
            raise ValueError(f"{file.name}#{number} has more cells than the header has names; copy the file again")
        if cell := record.get("image"):
            try:
                record["image"] = base64.b64decode(cells.get(cell, cell) or "", validate=True)
            except binascii.Error:
                raise ValueError(f"{file.name}#{number}: column image is not base64; copy the file again") from None
    return records


def _json_records(file: Path) -> list[Any]:
    try:
        if file.suffix == ".jsonl":
            return [parse(line) for line in file.read_bytes().splitlines() if line.strip()]
        content = parse(file.read_bytes())
    except JSONError as error:
        raise ValueError(f"{file}: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict):
        content = [{"id": key, **record} for key, record in content.items() if isinstance(record, dict)]
    if not isinstance(content, list):
        raise ValueError(f'{file} holds no list of records: write [..] or {{"data": [..]}}')
    return content


def _reference(cell: Any, names: Mapping[str, Any], root: Path, where: str) -> ImageRef:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    name = cell if isinstance(cell, str) else next(map(str, names.values()), None)
    if name is None:
        raise ValueError(f"{where} has no image: none of its columns is {', '.join(IMAGE_COLUMNS + IMAGE_IDS)}")
    for folder in (root, root / "images"):
        for candidate in (name, *(name + suffix for suffix in SUFFIXES)):
            if (folder / candidate).is_file():
                return ImageFile(name=candidate, root=str(folder))  # which refuses to read outside its root
    if shards := sorted((root / "images").glob("*.parquet")):
        return _by_id(tuple(shards), name, where)
    raise ValueError(f"{where}: no image {name!r} in {root} or its images/: put the pictures there")


@functools.cache
def _pictures(shards: tuple[Path, ...]) -> tuple[Any, dict[str, int]]:
    from vision_remember.data.raw_parquet import load_parquet

    table = load_parquet(shards)
    named = table.rows(0, len(table), without=[name for name in table.column_names if name != "id"])
    return table, {str(row["id"]): number for number, row in enumerate(named)}


def _by_id(shards: tuple[Path, ...], name: str, where: str) -> ImageRef:
    table, numbers = _pictures(shards)
    if name not in numbers:
        raise ValueError(f"{where}: {shards[0].parent} has no picture {name!r}; copy all its shards")
    return table[numbers[name]]["image"]["bytes"]
