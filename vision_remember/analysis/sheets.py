"""What a model is shown while we look inside: pages that we rendered, so that every character is known, or a user's own images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vision_remember.data.archive import IMAGE_SUFFIXES
from vision_remember.data.images import decode_image
from vision_remember.data.synthetic import FINE, SyntheticSamples
from vision_remember.data.synthetic.canvas import Box

SPLIT = "test"  # content that no training page shows


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """One image and the question asked about it.

    Attributes:
        name: Short, and unique among the sheets.
        source: The image, or the file that holds it.
        question: In the user's words.
        answer: What stands on the page; None for a user's image.
        evidence: Where the answer stands, (x0, y0, x1, y1) in px of the image; None where unknown.
        cells: `long[12, 12]`, what stands in each cell of a rendered page; None for a user's image.
    """

    name: str
    source: Image.Image | Path
    question: str
    answer: str | None = None
    evidence: Box | None = None
    cells: Tensor | None = None

    @property
    def image(self) -> Image.Image:
        """The decoded image; of a file it is read anew each time, because a folder of photographs does not fit into memory."""
        return decode_image(self.source)


def rendered_sheets(count: int, seed: int = 0) -> list[Sheet]:
    """Renders pages of the families that carry text, in turns, each with its first question.

    Args:
        count: Number of pages.
        seed: Of the set.
    """
    samples = SyntheticSamples(count, split=SPLIT, seed=seed, families=FINE)
    pages = [samples.page(index) for index in range(count)]
    return [
        Sheet(
            name=page.id,
            source=page.image,
            question=page.questions[0].question,
            answer=page.questions[0].answer,
            evidence=page.questions[0].evidence,
            cells=torch.from_numpy(page.cells),
        )
        for page in pages
    ]


def image_sheets(folder: Path, question: str) -> list[Sheet]:
    """Asks one question about every image in a folder and below it, in the order of their names.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; --images takes a folder of image files")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image; the analysis reads {', '.join(IMAGE_SUFFIXES)}")
    return [Sheet(name=str(file.relative_to(folder)), source=file, question=question) for file in files]
