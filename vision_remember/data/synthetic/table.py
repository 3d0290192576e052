"""Tables: a cell by its row and column header, or a row by its name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from vision_remember.data.synthetic.canvas import Box, Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask, exercise

CELL = ["What is in row {0}, column {1}?", "Read row {0}, column {1}."]
ROW = ["Read row {0}."]
COLUMNS = (3, 6, 9)  # cells where the columns of values start


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes a table of 2 or 3 rows and 3 columns with headers, and asks for every cell and every row."""
    rng = content.rng
    top, *rows = canvas.lines[: rng.randrange(3, 5)]
    names = content.distinct(content.header, len(COLUMNS) + len(rows))
    headers, names = names[: len(COLUMNS)], names[len(COLUMNS) :]
    for column, header in zip(COLUMNS, headers, strict=True):
        canvas.write(top, column, header)
    if rng.random() < 0.7:
        canvas.rule(top, 0, 12)
    questions, table = [], []
    for row, name in zip(rows, names, strict=True):
        canvas.write(row, 0, name)
        values = [content.number(2) if rng.random() < 0.7 else content.code(2) for _ in COLUMNS]
        boxes = [canvas.write(row, column, value) for column, value in zip(COLUMNS, values, strict=True)]
        for header, value, box in zip(headers, values, boxes, strict=True):
            questions.append(ask(rng, CELL, [name, header], value, box))
        whole = (boxes[0][0], boxes[0][1], boxes[-1][2], boxes[-1][3])
        questions.append(ask(rng, ROW, [name], " ".join(values), whole))
        table.append(values)
    rng.shuffle(questions)
    return questions + _exercises(headers, names, table, (0, 0, *canvas.image.size))


def _exercises(headers: list[str], names: list[str], table: list[list[str]], box: Box) -> list[Question]:
    """Whole columns, and rows and columns with the names that their values stand under; then the same in any order."""
    found = []
    for name, values in zip(names, table, strict=True):
        found.append(exercise(1, f"Read row {name} with its columns.", _pairs(headers, values), box))
        for some in itertools.permutations(zip(headers, values, strict=True)):
            chosen, read = zip(*some, strict=True)
            found.append(exercise(2, f"Read row {name}, columns {' '.join(chosen)}.", " ".join(read), box))
            found.append(exercise(2, f"Read row {name} with columns {' '.join(chosen)}.", _pairs(chosen, read), box))
    for header, *below in zip(headers, *table, strict=True):
        found.append(exercise(1, f"Read column {header}.", " ".join(below), box))
        found.append(exercise(1, f"Read column {header} with its rows.", _pairs(names, below), box))
        for some in itertools.permutations(zip(names, below, strict=True)):
            chosen, read = zip(*some, strict=True)
            found.append(exercise(2, f"Read column {header}, rows {' '.join(chosen)}.", " ".join(read), box))
    return found


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return " ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
