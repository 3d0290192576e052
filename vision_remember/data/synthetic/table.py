"""Tables: a cell by its row and column header, or a row by its name."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask

CELL = ["What is in row {0}, column {1}?", "Read row {0}, column {1}."]
ROW = ["Read row {0}."]
COLUMNS = (3, 6, 9)  # cells where the columns of values start


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes a table of 2 or 3 rows and 3 columns with headers, and asks for every cell and every row."""
    rng = content.rng
    top, *rows = canvas.lines[: rng.randrange(3, 5)]
    headers = content.distinct(content.header, len(COLUMNS) + len(rows))
    for column, header in zip(COLUMNS, headers, strict=False):
        canvas.write(top, column, header)
    if rng.random() < 0.7:
        canvas.rule(top, 0, 12)
    questions = []
    for row, name in zip(rows, headers[len(COLUMNS) :], strict=True):
        canvas.write(row, 0, name)
        values = [content.number(2) if rng.random() < 0.7 else content.code(2) for _ in COLUMNS]
        boxes = [canvas.write(row, column, value) for column, value in zip(COLUMNS, values, strict=True)]
        for header, value, box in zip(headers, values, boxes, strict=False):
            questions.append(ask(rng, CELL, [name, header], value, box))
        whole = (boxes[0][0], boxes[0][1], boxes[-1][2], boxes[-1][3])
        questions.append(ask(rng, ROW, [name], " ".join(values), whole))
    rng.shuffle(questions)
    return questions
