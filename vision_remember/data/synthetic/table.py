"""Tables: a cell by its row and column header."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask

PHRASINGS = ["What is the {1} of {0}?", "What is in row {0}, column {1}?"]


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes a table with row and column headers and asks for every cell."""
    rng = content.rng
    width = rng.choice((2, 3))  # characters of a value
    columns = 3 if width == 2 else 2
    count = rng.randrange(3, 6)
    step = rng.choice((1, 2)) if count < 5 else 1
    top = rng.randrange(0, min(3, 12 - step * count))
    headers = content.distinct(lambda: content.code(2).translate(str.maketrans("23456789", "ABCDEFGH")), columns)
    names = content.distinct(lambda: content.word(3), count)
    left = [4 + (width + 1) * place for place in range(columns)]
    for column, header in zip(left, headers, strict=True):
        canvas.write(top, column, header)
    if rng.random() < 0.7:
        canvas.rule(top, 0, 12)
    questions = []
    for place, name in enumerate(names):
        row = top + 1 + step * place + (step - 1)
        canvas.write(row, 0, name)
        for column, header in zip(left, headers, strict=True):
            value = content.number(width) if rng.random() < 0.7 else content.code(width)
            box = canvas.write(row, column, value)
            questions.append(ask(rng, PHRASINGS, [name, header], value, box))
    rng.shuffle(questions)
    return questions
