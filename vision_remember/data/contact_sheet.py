"""A picture of a data set: pages side by side, with their questions, their answers, and a frame around each answer's evidence."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vision_remember.data.schema import DataError, Sample, SampleSequence
from vision_remember.data.sources import load_samples

COLUMNS = 4
PAGE = 240  # px; side of the square a page is fitted into
MARGIN = 12
FONT_SIZE = 12
LINE = 15
NUM_TURNS = 3  # questions shown of one sample
MAX_LETTERS = 1000  # of one text
INK, ANSWER, BAD, PAPER = (30, 30, 30), (0, 90, 160), (180, 0, 0), (255, 255, 255)
EVIDENCE = ((220, 60, 20), (20, 130, 60), (120, 60, 180))  # one colour a question


@dataclass(frozen=True, kw_only=True)
class _Cell:
    page: Image.Image | None
    lines: tuple[tuple[str, tuple[int, int, int]], ...]


def write_contact_sheet(path: str | Path, out: str | Path, *, count: int = 12) -> Path:
    """Draws the first samples of a data set into a PNG.

    Args:
        path: Folder or file, as for `load_samples`.
        out: File to write.
        count: Most samples shown.

    Raises:
        DataError: The data set cannot be opened. A bad sample in it is shown as such, with the reason.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(load_samples(path), count=count).save(out, format="PNG")
    return out


def draw_contact_sheet(samples: SampleSequence, *, count: int = 12) -> Image.Image:
    """The first `count` samples in rows of `COLUMNS`."""
    font = ImageFont.load_default(FONT_SIZE)
    cells = [_cell(samples, index, font) for index in range(min(count, len(samples)))]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    heights = [PAGE + LINE * max(len(cell.lines) for cell in row) + 2 * MARGIN for row in rows]
    width = MARGIN + (PAGE + MARGIN) * min(COLUMNS, len(cells))
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = MARGIN + column * (PAGE + MARGIN)
            if cell.page is not None:
                sheet.paste(cell.page, (left + (PAGE - cell.page.width) // 2, top + (PAGE - cell.page.height) // 2))
            draw.rectangle((left - 1, top - 1, left + PAGE, top + PAGE), outline=(200, 200, 200))
            for number, (line, colour) in enumerate(cell.lines):
                draw.text((left, top + PAGE + 4 + number * LINE), line, fill=colour, font=font)
        top += height
    return sheet


def _cell(samples: SampleSequence, index: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> _Cell:
    try:
        sample = samples[index]
        page = _page(sample) if sample.images else None
    except DataError as error:
        return _Cell(page=None, lines=tuple((line, BAD) for line in _wrap(str(error), font, 8)))
    title = sample.id if sample.family is None else f"{sample.id} ({sample.family})"
    lines = [(line, INK) for line in _wrap(title, font, 1)]
    talk = [turn for turn in sample.turns if turn.role != "system"]
    for number, (question, answer) in enumerate(zip(talk[::2][:NUM_TURNS], talk[1::2], strict=False)):
        colour = EVIDENCE[number] if sample.evidence else ANSWER
        lines += [(line, INK) for line in _wrap(f"Q: {question.text.strip()}", font, 3)]
        lines += [(line, colour) for line in _wrap(f"A: {answer.text.strip()}", font, 2)]
    if len(talk) > 2 * NUM_TURNS:
        lines.append((f"and {len(talk) // 2 - NUM_TURNS} more questions", INK))
    return _Cell(page=page, lines=tuple(lines))


def _page(sample: Sample) -> Image.Image:
    """The first image, fitted into the square, with the evidence framed."""
    image = sample.read_image(0).image
    scale = PAGE / max(image.size)
    page = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(page)
    for (x0, y0, x1, y1), colour in zip(sample.evidence or (), EVIDENCE, strict=False):
        box = (min(x0, x1) * scale - 1, min(y0, y1) * scale - 1, max(x0, x1) * scale, max(y0, y1) * scale)
        draw.rectangle(box, outline=colour)
    return page


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int) -> list[str]:
    """At most `most` lines that fit the width of a page, the last one marked where text is left out."""
    words = "".join(letter if letter.isprintable() else " " for letter in text[:MAX_LETTERS]).split()
    lines = [""]
    while words and len(lines) <= most:
        word = words.pop(0)
        room = f"{lines[-1]} {word}".lstrip()
        if font.getlength(room) <= PAGE:
            lines[-1] = room
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:
            fits = max(1, bisect_right([font.getlength(word[:length]) for length in range(1, len(word) + 1)], PAGE))
            lines[-1:] = [word[:fits], ""]
            words.insert(0, word[fits:])
    lines = [line for line in lines if line]
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-2] + ".."]
