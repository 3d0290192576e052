"""What stands on a synthetic page: words, codes and numbers that are disjoint between splits.

Every word, code and long number is put on one side by its checksum: one in five belongs to `test` and `shift`, the rest to `train`. So a
test page is read, never remembered. Numbers of one and two digits are too few to divide and are shared; their pages still differ.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

SPLITS = ("train", "test", "shift")
LABELS = (
    "TOTAL DATE NAME CITY TAX PRICE ID PHONE UNIT SIZE RATE AGE CODE ORDER ITEM NET GROSS PAID DUE BANK "
    "ROOM FLOOR GATE SEAT ROW TRAIN BUS TIME DAY MONTH YEAR STOCK COST SUM FEE QTY ZIP AREA TYPE MODEL "
    "COLOR WIDTH LEVEL GRADE CLASS GROUP TEAM SCORE RANK POINT"
).split()
_CONSONANTS, _VOWELS = "BCDFGHJKLMNPRSTVWZ", "AEIOU"
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I and no O: printed codes avoid what looks like 1 and 0


class Content:
    """A source of strings of one split.

    Args:
        rng: the page's random source.
        split: `train`, `test` or `shift`.
    """

    def __init__(self, rng: random.Random, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
        self.rng = rng
        self._held_out = split != "train"

    def word(self, length: int) -> str:
        """A pronounceable invented word, such as KAMO."""
        return self._draw(lambda: "".join(self.rng.choice(_VOWELS if i % 2 else _CONSONANTS) for i in range(length)))

    def code(self, length: int) -> str:
        """Letters and digits in any order, such as X4K."""
        return self._draw(lambda: "".join(self.rng.choice(_CODE_LETTERS + "23456789") for _ in range(length)))

    def number(self, digits: int) -> str:
        """A whole number without leading zero."""

        def draw() -> str:
            return str(self.rng.randrange(10 ** (digits - 1), 10**digits))

        return draw() if digits < 3 else self._draw(draw)

    def header(self) -> str:
        """Two letters, such as QF."""
        return self._draw(lambda: "".join(self.rng.choice(_CODE_LETTERS) for _ in range(2)))

    def values(self, count: int) -> list[int]:
        """Two-digit numbers with different tens, so that which is larger shows at a glance."""
        return [10 * tens + self.rng.randrange(10) for tens in self.rng.sample(range(1, 10), count)]

    def amount(self) -> str:
        """A number with one decimal, such as 41.5."""
        return self._draw(lambda: f"{self.rng.randrange(10, 100)}.{self.rng.randrange(10)}")

    def labels(self, count: int, longest: int) -> list[str]:
        """Field names of at most `longest` letters, each with another initial."""
        short = [label for label in LABELS if len(label) <= longest]
        return self.distinct(lambda: self.rng.choice(short), count)

    def distinct(self, draw: Callable[[], str], count: int) -> list[str]:
        """Calls `draw` until it has given `count` strings with different initials, as the names of one page have."""
        found: dict[str, str] = {}
        while len(found) < count:
            text = draw()
            found.setdefault(text[0], text)
        return list(found.values())

    def _draw(self, draw: Callable[[], str]) -> str:
        while True:
            text = draw()
            if (zlib.crc32(text.encode()) % 5 == 0) == self._held_out:
                return text
