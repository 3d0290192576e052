"""The page the synthetic documents are drawn on: a square sheet of character cells.

A page is 192 x 192 px, 12 x 12 cells of 16 px. Families write characters and elements into cells; the canvas draws them with one of
matplotlib's bundled fonts and keeps, for every cell, what was put there (`cells`) and in which colour (`colours`). Those two arrays are
the dense targets the tiny encoder is pretrained on, and `as_text` is the same page as characters, which the tiny language model is
pretrained on.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 16  # px
SIDE = 12  # cells per side
LINE = 3  # cells from one written line to the next
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:.-/%"
ELEMENTS = ("bar", "marker", "wedge", "swatch", "circle", "square", "triangle")
CELL_CLASSES = ("blank", *CHARACTERS, *ELEMENTS)
COLOURS = {
    "ink": (25, 25, 30),
    "red": (205, 45, 40),
    "green": (40, 145, 60),
    "blue": (45, 85, 205),
    "orange": (240, 145, 25),
    "purple": (135, 60, 170),
}
COLOUR_CLASSES = ("none", *COLOURS)
SYMBOLS = {
    "bar": "#",
    "marker": "*",
    "blank": " ",
}  # how an element reads in `as_text`; the others read as their colour's initial

# What `train` and `test` pages are set in, and what only `shift` pages are set in.
SEEN_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "STIXGeneral")
SEEN_SIZES = (16, 17, 18)
UNSEEN_FONTS = ("DejaVuSerif-Bold", "STIXGeneralBol", "DejaVuSansMono-Oblique")
UNSEEN_SIZES = (14, 15, 19)

Box = tuple[int, int, int, int]


@functools.cache
def _font_folder() -> Path:
    """matplotlib's font folder, found without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"


@functools.cache
def _glyph(font: str, size: int, character: str) -> Image.Image:
    """A CELL x CELL mask of one character, centred, on a baseline shared by its font and size."""
    face = ImageFont.truetype(str(_font_folder() / f"{font}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)
    mask = Image.new("L", (CELL, CELL), 0)
    top = face.getbbox("H", anchor="ls")[1]
    baseline = (CELL - top) // 2
    ImageDraw.Draw(mask).text((CELL / 2, baseline), character, fill=255, font=face, anchor="ms")
    return mask


class Canvas:
    """One page while a family draws it.

    Args:
        rng: the page's own random source; font, size, ink and a page-wide offset of up to 2 px are drawn from it first.
        shift: set the page in fonts and sizes that training never shows.
    """

    def __init__(self, rng: random.Random, *, shift: bool) -> None:
        self.font = rng.choice(UNSEEN_FONTS if shift else SEEN_FONTS)
        self.size = rng.choice(UNSEEN_SIZES if shift else SEEN_SIZES)
        self.ink = tuple(rng.randrange(0, 70) for _ in range(3))
        paper = tuple(rng.randrange(232, 256) for _ in range(3))
        self.offset = (rng.randrange(-1, 3), rng.randrange(-1, 3))
        self.first_line = rng.randrange(LINE)
        self.image = Image.new("RGB", (SIDE * CELL, SIDE * CELL), paper)
        self.draw = ImageDraw.Draw(self.image)
        self.cells = np.zeros((SIDE, SIDE), dtype=np.int64)
        self.colours = np.zeros((SIDE, SIDE), dtype=np.int64)

    @property
    def lines(self) -> list[int]:
        """The rows that are written on, four of them from a start that the page has drawn."""
        return list(range(self.first_line, SIDE, LINE))

    def box(self, row: int, column: int, width: int = 1, height: int = 1) -> Box:
        """Pixels (x0, y0, x1, y1) of a block of cells, clipped to the page."""
        (dx, dy), edge = self.offset, SIDE * CELL
        x, y = column * CELL + dx, row * CELL + dy
        return max(x, 0), max(y, 0), min(x + width * CELL, edge), min(y + height * CELL, edge)

    def write(self, row: int, column: int, text: str) -> Box:
        """Writes one character a cell, from left to right, and returns the pixels it covers."""
        if column + len(text) > SIDE or row >= SIDE:
            raise ValueError(f"text {text!r} at row {row}, column {column} leaves the {SIDE} x {SIDE} page")
        for place, character in enumerate(text, start=column):
            if character == " ":
                continue
            x, y = place * CELL + self.offset[0], row * CELL + self.offset[1]
            self.image.paste(self.ink, (x, y), _glyph(self.font, self.size, character))
            self._note(row, place, character, "ink")
        return self.box(row, column, len(text))

    def bar(self, row: int, column: int, width: int, height: int, colour: str) -> None:
        """A filled block of cells, a bar of a chart."""
        x0, y0, x1, y1 = self.box(row, column, width, height)
        self.draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[colour])
        self._note(slice(row, row + height), slice(column, column + width), "bar", colour)

    def marker(self, row: int, column: int, colour: str) -> Box:
        """The dot of a line chart, in the middle of its cell."""
        x0, y0, x1, y1 = self.box(row, column)
        self.draw.ellipse((x0 + 3, y0 + 3, x0 + CELL - 4, y0 + CELL - 4), fill=COLOURS[colour])
        self._note(row, column, "marker", colour)
        return x0, y0, x1, y1

    def swatch(self, row: int, column: int, colour: str) -> None:
        """The small square of a legend."""
        x0, y0, _, _ = self.box(row, column)
        self.draw.rectangle((x0 + 3, y0 + 3, x0 + CELL - 4, y0 + CELL - 4), fill=COLOURS[colour])
        self._note(row, column, "swatch", colour)

    def pie(self, row: int, column: int, side: int, shares: list[tuple[str, int]]) -> None:
        """A disc of `side` x `side` cells cut into (colour, percent) wedges, clockwise from the top."""
        box = self.box(row, column, side, side)
        angle, ends = -90.0, []
        for colour, percent in shares:
            self.draw.pieslice(box, angle, angle + 3.6 * percent, fill=COLOURS[colour], outline=(255, 255, 255))
            angle += 3.6 * percent
            ends.append((angle + 90, colour))
        half = side / 2
        for r in range(side):
            for c in range(side):
                x, y = c + 0.5 - half, r + 0.5 - half
                if x * x + y * y < (half - 0.3) ** 2:
                    turn = float(np.degrees(np.arctan2(x, -y))) % 360
                    self._note(row + r, column + c, "wedge", next(name for end, name in ends if turn <= end + 1e-6))

    def shape(self, row: int, column: int, side: int, kind: str, colour: str) -> Box:
        """A filled circle, square or triangle of `side` x `side` cells."""
        x0, y0, x1, y1 = self.box(row, column, side, side)
        fill = COLOURS[colour]
        if kind == "circle":
            self.draw.ellipse((x0 + 1, y0 + 1, x1 - 2, y1 - 2), fill=fill)
        elif kind == "square":
            self.draw.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), fill=fill)
        else:
            self.draw.polygon([(x0 + 1, y1 - 2), ((x0 + x1) // 2, y0 + 1), (x1 - 2, y1 - 2)], fill=fill)
        for r in range(side):
            for c in range(side):
                x, y = abs(c + 0.5 - side / 2), r + 0.5
                inside = {
                    "circle": x * x + (y - side / 2) ** 2 < (side / 2) ** 2,
                    "square": True,
                    "triangle": x <= y / 2,
                }
                if inside[kind]:
                    self._note(row + r, column + c, kind, colour)
        return x0, y0, x1, y1

    def rule(self, row: int, column: int, width: int) -> None:
        """A thin line under `width` cells of a row."""
        x0, _, x1, y1 = self.box(row, column, width)
        self.draw.line((x0, y1 - 1, x1, y1 - 1), fill=(150, 150, 155))

    def stroke(self, start: Box, end: Box, colour: str) -> None:
        """A line between the centres of two boxes, drawn under nothing and noted nowhere: decoration of a line chart."""
        centres = [((a + c) // 2, (b + d) // 2) for a, b, c, d in (start, end)]
        self.draw.line([*centres[0], *centres[1]], fill=COLOURS[colour], width=2)

    def as_text(self) -> list[str]:
        """The page as SIDE x SIDE characters, row by row: what a reader would type, elements as symbols."""
        rows = []
        for names, tints in zip(self.cells, self.colours, strict=True):
            row = ""
            for name, tint in zip(names, tints, strict=True):
                kind = CELL_CLASSES[name]
                row += kind if len(kind) == 1 else SYMBOLS.get(kind) or COLOUR_CLASSES[tint][0]
            rows.append(row)
        return rows

    def _note(self, row: int | slice, column: int | slice, kind: str, colour: str) -> None:
        self.cells[row, column] = CELL_CLASSES.index(kind)
        self.colours[row, column] = COLOUR_CLASSES.index(colour)
