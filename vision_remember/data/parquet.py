"""Parquet shards, one record a row, through `datasets`: converted once to memory-mapped Arrow in its cache, shared by all workers.

Rows are read as plain values and never through `datasets`' own image decoding, so every image meets the one decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from vision_remember.data.records import read_record
from vision_remember.data.schema import Sample
from vision_remember.data.sources import FileSamples, file_error


class ParquetSamples(FileSamples):
    """Rows of Parquet files with the columns of a record.

    Args:
        files: The shards, in order.
        root: Folder that image names are relative to; images may also be bytes or `{"bytes", "path"}`.

    Raises:
        DataError: A shard is not Parquet, or the shards have different columns.
    """

    def __init__(self, files: Sequence[Path], root: str):
        super().__init__(files)
        self.root = root
        try:
            table = load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        except (DatasetsError, OSError, ValueError) as error:
            why = ascii(str(error).splitlines()[0][:120])[1:-1] if str(error) else type(error).__name__
            raise file_error(
                files[0], "data.parquet", f"cannot be read as Parquet ({why})", "write the file again"
            ) from None
        self._rows = table.with_format("arrow")
        self._source = files[0].name if len(files) == 1 else files[0].parent.name

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample:
        for number in range(len(self.files)):
            self.check_unchanged(number)
        record = self._rows[index].to_pylist()[0]
        return read_record(record, root=self.root, source=self._source, number=index)
