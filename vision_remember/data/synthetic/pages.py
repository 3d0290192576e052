"""Pages by name: (family, split, seed, index) gives one page, always the same."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vision_remember.data.synthetic.canvas import CHARACTERS, Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question

FINE = ("text", "table", "chart", "form")
COARSE = ("layout",)


@dataclass(frozen=True)
class Page:
    """A rendered page, its questions, and what stands in each cell.

    `exercises` are questions that only pretraining asks. `cells` and `colours` are int[12, 12], indices into `canvas.CELL_CLASSES` and
    `canvas.COLOUR_CLASSES`; `text` holds the same page as 12 rows of 12 characters.
    """

    id: str
    family: str
    image: Image.Image
    questions: list[Question]
    exercises: list[Question]
    cells: np.ndarray
    colours: np.ndarray
    text: list[str]

    @property
    def transcript(self) -> str:
        """The written lines from top to bottom, without elements and empty lines; empty for a page without writing."""
        lines = ("".join(cell if cell in CHARACTERS else " " for cell in row) for row in self.text)
        return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def families() -> list[str]:
    """The document families: every file of this folder that defines `draw`."""
    folder = Path(__file__).parent
    return sorted(file.stem for file in folder.glob("*.py") if "\ndef draw(canvas" in file.read_text(encoding="utf-8"))


def make_page(family: str, split: str, seed: int, index: int) -> Page:
    """Draws one page.

    Args:
        family: one of `families()`.
        split: `train`, `test` (unseen content) or `shift` (unseen content, fonts and sizes).
        seed: of the whole set.
        index: of the page in its set.

    Raises:
        ValueError: unknown family or split, with the known ones.
    """
    if family not in families():
        raise ValueError(f"unknown family {family!r}: use one of {', '.join(families())}")
    rng = random.Random(f"{seed}/{split}/{family}/{index}")
    content = Content(rng, split)
    canvas = Canvas(rng, shift=split == "shift")
    drawn = _painter(family)(canvas, content)
    questions = [question for question in drawn if question.level == 0]
    exercises = [question for question in drawn if question.level]
    name = f"{family}-{split}-{seed}-{index:06d}"
    return Page(name, family, canvas.image, questions, exercises, canvas.cells, canvas.colours, canvas.as_text())


def _painter(family: str) -> Callable[[Canvas, Content], list[Question]]:
    return importlib.import_module(f"vision_remember.data.synthetic.{family}").draw
