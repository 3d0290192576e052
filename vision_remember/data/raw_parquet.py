"""Parquet as it was written, through `datasets`: every cell a plain value, so that pictures stay bytes and meet the one decoder only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError


class RawTable:
    """A table of `datasets`, memory-mapped, by row number.

    Args:
        table: A data set of one split.
    """

    def __init__(self, table: Any):
        self._table = table.with_format("arrow")

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return self._table.column_names

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._table[number].to_pylist()[0]

    def rows(self, start: int, end: int, *, without: Sequence[str]) -> list[dict[str, Any]]:
        """Rows start to end without some of their columns, which are not even read."""
        return self._table.remove_columns(list(without))[start:end].to_pylist()


def load_parquet(files: Sequence[Path]) -> RawTable:
    """Opens shards as one table; `datasets` converts them once to Arrow in its cache.

    Raises:
        ValueError: A shard is not Parquet, or the shards have different columns.
    """
    try:
        return RawTable(load_dataset("parquet", data_files=[str(file) for file in files], split="train"))
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"{files[0]} cannot be read as Parquet ({error}); copy it again") from None
