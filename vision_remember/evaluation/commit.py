"""Which commit of this package computed a score: kept with the scores, because published numbers are hard to reproduce without it."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def source_commit() -> str | None:
    """Return the commit of the checkout this package runs from, with `+changes` where files differ; None outside a checkout of it."""
    if not (ROOT / ".git").exists():
        return None
    commit = _git("rev-parse", "HEAD")
    return commit and (f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
