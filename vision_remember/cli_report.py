"""What a verb of the command line gives back, and how a table becomes text."""

import io
import shutil
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a verb, for people and for programs.

    Attributes:
        text: for people.
        data: for `--json`.
        succeeded: False gives exit status 1.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    succeeded: bool = True


def rendered(table: RenderableType) -> str:
    """A table as wide as the terminal, without trailing blanks."""
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 24)).columns)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]
