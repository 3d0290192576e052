"""JSON without surprises: no duplicate keys, no NaN, no crash on hostile depth or numbers, and an index instead of a copy.

Python's `json` keeps the last of two equal keys, reads NaN, and dies of deep nesting with RecursionError. And a large LLaVA file parsed
whole in every worker multiplies its memory; here the file is mapped, cut into records by position, and one record is parsed when it is
asked for, so an error names the record and the rest of the file is still checked.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterator
from mmap import mmap
from typing import Any

UTF8_BOM = b"\xef\xbb\xbf"
MAX_DEPTH = 100
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\x00")
# The next bracket (outside, also the next comma), whole strings skipped; a quote is found only where its string never ends.
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+(["\[\]{}])', re.DOTALL)
_OUTSIDE = re.compile(rb'(?:[^"\[\]{},]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+(["\[\]{},])', re.DOTALL)
_BLANK = re.compile(rb"[ \t\r\n]*")

Buffer = bytes | mmap


class JSONError(ValueError):
    """JSON that is refused; `code`, `why` and `fix` as in `Problem`, `offset` is the byte it was found at, if known."""

    def __init__(self, why: str, *, code: str = "json.syntax", fix: str = "mend the file", offset: int | None = None):
        super().__init__(f"{why}; {fix}")
        self.code, self.why, self.fix, self.offset = code, why, fix, offset


def parse(text: bytes) -> Any:
    """Parses one JSON value.

    Args:
        text: UTF-8.

    Raises:
        JSONError: Not JSON, not UTF-8, a key that stands twice, NaN or an infinite number, a number or a depth beyond limits.
    """
    if text.startswith(_OTHER_ENCODINGS):
        raise JSONError("not UTF-8 but UTF-16 or UTF-32", code="json.encoding", fix="save the file as UTF-8", offset=0)
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        why = f"byte {text[error.start]:#04x} is not UTF-8"
        raise JSONError(why, code="json.encoding", fix="save the file as UTF-8", offset=error.start) from None
    except json.JSONDecodeError as error:
        raise JSONError(error.msg, offset=len(error.doc[: error.pos].encode("utf-8"))) from None
    except RecursionError:
        raise _too_deep() from None
    except JSONError:
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        raise JSONError(str(error).split(":")[0], code="json.number", fix="write a smaller number") from None


def list_records(data: Buffer) -> array[int]:
    """Positions of the records of a JSON list.

    Returns:
        Start and end byte of each record, flat: `[start0, end0, start1, end1, ...]`.

    Raises:
        JSONError: The whole is not a list, or its brackets do not match; with the position.
    """
    begin = _first_byte(data)
    if data[begin : begin + 1] != b"[":
        raise JSONError("the file is not a JSON list of records", fix="wrap the records in [ ]", offset=begin)
    spans = array("q")
    brackets = bytearray()
    start, position = begin + 1, begin
    while token := (_INSIDE if len(brackets) > 1 else _OUTSIDE).match(data, position):
        kind, at = token[1], token.start(1)
        position = at + 1
        if kind == b'"':
            raise JSONError("a string that never ends", offset=at)
        if kind in b"[{":
            brackets += kind
            if len(brackets) > MAX_DEPTH:
                raise _too_deep(at)
        elif kind in b"]}":
            if brackets[-1:] != (b"[" if kind == b"]" else b"{"):
                raise JSONError(f"a {kind.decode()} that closes nothing", offset=at)
            brackets.pop()
        if not brackets or (kind == b"," and len(brackets) == 1):
            spans.extend(_strip(data, start, at))
            start = position
        if not brackets:
            break
    else:
        raise JSONError("the file ends inside the list", fix="the file is cut off: copy it again", offset=len(data))
    if (rest := _skip_blank(data, start)) != len(data):
        raise JSONError("text after the end of the list", offset=rest)
    if len(spans) == 2 and spans[0] == spans[1]:
        return array("q")
    return spans


def line_records(data: Buffer) -> array[int]:
    """Positions of the non-empty lines of a JSONL file, as `list_records` gives them."""
    spans = array("q")
    start = _first_byte(data)
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        first, last = _strip(data, start, end)
        if first < last:
            spans.extend((first, last))
        start = end + 1
    return spans


def place(data: Buffer, offset: int) -> str:
    """`line 12, byte 3407`: where an editor finds it."""
    lines = sum(block.count(b"\n") for block in _blocks(data, offset)) + 1
    return f"line {lines}, byte {offset}"


def _first_byte(data: Buffer) -> int:
    """Position of the first byte that is neither byte order mark nor blank."""
    head = data[:4]
    if head.startswith(_OTHER_ENCODINGS) or head[1:2] == b"\x00":
        raise JSONError("not UTF-8 but UTF-16 or UTF-32", code="json.encoding", fix="save the file as UTF-8", offset=0)
    return _skip_blank(data, len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0)


def _skip_blank(data: Buffer, start: int) -> int:
    blank = _BLANK.match(data, start)
    return blank.end() if blank else start


def _strip(data: Buffer, start: int, end: int) -> tuple[int, int]:
    start = min(_skip_blank(data, start), end)
    while end > start and data[end - 1] in b" \t\r\n":
        end -= 1
    return start, end


def _blocks(data: Buffer, end: int, size: int = 1 << 20) -> Iterator[bytes]:
    for start in range(0, end, size):
        yield data[start : min(start + size, end)]


def _too_deep(offset: int | None = None) -> JSONError:
    return JSONError("nested too deeply", code="json.depth", fix=f"nest at most {MAX_DEPTH} levels", offset=offset)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise JSONError(
            f"key {ascii(twice)} stands twice in one object", code="json.duplicate_key", fix="keep one of them"
        )
    return record


def _no_constant(name: str) -> float:
    raise JSONError(f"{name} is not a JSON number", code="json.number", fix="write a number or null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JSONError(f"{text[:40]} is too large a number", code="json.number", fix="write a smaller number")
    return value
