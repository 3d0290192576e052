"""The console script's promise to a shell: what runs a verb, and what comes back.

The result on stdout (`--json`: exactly one object) and everything else on stderr; exit status 0 done, 1 failed, 2 wrong usage,
130 interrupted; a user's mistake gets one clear line, never a traceback.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from types import ModuleType

    from vision_remember.cli_report import Report

DONE, FAILED, INTERRUPTED = 0, 1, 130


def run(verb: Callable[["ModuleType"], "Report"], as_json: bool) -> None:
    """Import the package, run one verb, print its report and turn errors into an exit status.

    Args:
        verb: receives the module `vision_remember.cli` and returns the report.
        as_json: print the report's data as JSON instead of its text.

    Raises:
        typer.Exit: with the status, unless it is 0.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            from vision_remember import cli

            report = verb(cli)
        status, text, content = (DONE if report.succeeded else FAILED), report.text, report.data
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if "VISION_REMEMBER_TRACEBACK" in os.environ:
            raise
        print(f"error: {error}", file=sys.stderr)
        status, text, content = FAILED, None, {"error": str(error)}
    if as_json:
        print(json.dumps(content, allow_nan=False), flush=True)
    elif text is not None:
        print(text, flush=True)
    if status:
        raise typer.Exit(status)


def open_closed_streams() -> None:
    """Point closed standard streams at the null device, so that no file opened later takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - lives as long as the process
