"""File names from data sets: they must stay under their root, and a near miss is answered with the name that was meant.

A data set is written by somebody else and may name `../../etc/passwd`, a URL, or `Page_1.PNG` where the disk has `page_1.png`.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from vision_remember.data.images import ImageError

_DRIVE_OR_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def resolve_under(root: str, name: str) -> Path:
    """The real path of `name` inside `root`, links followed.

    Args:
        root: Folder that holds the data.
        name: Path relative to it, with forward slashes.

    Raises:
        ImageError: The name is absolute, a URL, has backslashes or NUL, leads out of the root (also through a link), or nothing
            is there; then the nearest existing name is suggested.
    """
    if reason := _forbidden(name):
        raise ImageError(
            f"{reason} is not allowed as a file name", code="image.path", fix="write a path relative to the data folder"
        )
    base = os.path.realpath(root)
    path = os.path.join(base, name)
    try:
        real = os.path.realpath(path)
        if os.path.commonpath([base, real]) != base:  # before asking whether it exists: what is outside stays unknown
            why, fix = "leads out of the data folder", "copy the image into the data folder"
            raise ImageError(why, code="image.path", fix=fix)
        return Path(os.path.realpath(path, strict=True))
    except FileNotFoundError:
        why = f"no such file under the data folder{_near(base, name)}"
        raise ImageError(why, code="image.missing", fix="check the name") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # a loop of links, a file used as a folder, a name too long for the disk
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ImageError(f"cannot be found ({reason})", code="image.unreadable", fix="check the name") from None


def _forbidden(name: str) -> str | None:
    if not name:
        return "an empty string"
    if "\0" in name:
        return "a name with a NUL byte"
    if "\\" in name:
        return "a backslash"
    if _DRIVE_OR_URL.match(name):
        return "a URL or drive"
    return "an absolute path" if name.startswith("/") else None


def _near(base: str, name: str) -> str:
    """`, but 'pages/a.png' exists`, or nothing: follows the name folder by folder and mends spelling, case and Unicode form."""
    found: list[str] = []
    for part in name.split("/"):
        here = os.path.join(base, *found)
        if part == ".." or os.path.commonpath([base, os.path.realpath(here)]) != base:
            return ""
        try:
            entries = _listing(here, os.stat(here).st_mtime_ns)
        except OSError:
            return ""
        folded = unicodedata.normalize("NFC", part).casefold()
        if part in entries.values():
            found.append(part)
        elif folded in entries:
            found.append(entries[folded])
        elif close := difflib.get_close_matches(folded, list(entries)[:2000], n=1, cutoff=0.8):
            found.append(entries[close[0]])
        else:
            return ""
    return f", but {ascii('/'.join(found))} exists"


@lru_cache(maxsize=16)
def _listing(folder: str, modified: int) -> dict[str, str]:
    """Names in a folder by their folded form; `modified` only makes the cache forget a folder that changed."""
    return {unicodedata.normalize("NFC", name).casefold(): name for name in sorted(os.listdir(folder))}
