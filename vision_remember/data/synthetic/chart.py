"""Charts: bars (lying, standing), lines and pies; read a value, find the largest, compare two."""

from __future__ import annotations

import random

from vision_remember.data.synthetic.canvas import COLOURS, Box, Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask

READ = ["What is the value of {0}?", "How much is {0}?"]
LARGEST = ["Which has the largest value?", "Which is the largest?"]
COMPARE = ["Which is larger, {0} or {1}?"]
FLOOR = 9  # row of the axis in standing charts: values 1 to 8 reach rows 8 to 1


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Draws one of the four kinds of chart and asks for values, the largest, and which of two is larger."""
    return content.rng.choice((lying_bars, standing_bars, line, pie))(canvas, content)


def lying_bars(canvas: Canvas, content: Content) -> list[Question]:
    """One bar a row, its value printed at its end."""
    rng = content.rng
    count = rng.randrange(3, 6)
    labels = content.distinct(lambda: content.word(3), count)
    values = rng.sample(range(10, 100), count)
    colour = _colour(rng)
    marks = []
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        row, length = 1 + 2 * place, 1 + value // 20
        canvas.write(row, 0, label)
        canvas.bar(row, 4, length, 1, colour)
        marks.append((label, value, canvas.write(row, 4 + length, str(value))))
    return _questions(content, marks)


def standing_bars(canvas: Canvas, content: Content) -> list[Question]:
    """Bars of whole heights against a scale of 1 to 8."""
    rng = content.rng
    colour = _colour(rng)
    marks = []
    for place, (label, value) in enumerate(_series(canvas, content)):
        column = 2 + 2 * place
        canvas.bar(FLOOR - value, column, 1, value, colour)
        marks.append((label, value, canvas.box(FLOOR - value, column, 1, value)))
    return _questions(content, marks)


def line(canvas: Canvas, content: Content) -> list[Question]:
    """Dots joined by a line against a scale of 1 to 8."""
    colour = _colour(content.rng)
    series = _series(canvas, content)
    boxes = [canvas.box(FLOOR - value, 2 + 2 * place) for place, (_, value) in enumerate(series)]
    for start, end in zip(boxes, boxes[1:], strict=False):
        canvas.stroke(start, end, colour)
    marks = [
        (label, value, canvas.marker(FLOOR - value, 2 + 2 * place, colour))
        for place, (label, value) in enumerate(series)
    ]
    return _questions(content, marks)


def pie(canvas: Canvas, content: Content) -> list[Question]:
    """A disc with a legend of names and percentages."""
    rng = content.rng
    count = rng.randrange(2, 5)
    cuts = sorted(rng.sample(range(10, 95, 5), count - 1))
    shares = [end - start for start, end in zip([0, *cuts], [*cuts, 100], strict=True)]
    if len(set(shares)) < count or min(shares) < 10:
        return pie(canvas, content)
    colours = rng.sample([name for name in COLOURS if name != "ink"], count)
    canvas.pie(0, 3, 6, list(zip(colours, shares, strict=True)))
    marks = []
    for place, (colour, share) in enumerate(zip(colours, shares, strict=True)):
        row, label = 7 + place, content.word(3)
        canvas.swatch(row, 1, colour)
        canvas.write(row, 3, label)
        marks.append((label, share, canvas.write(row, 7, f"{share}%")))
    return _questions(content, marks, unit="%")


def _series(canvas: Canvas, content: Content) -> list[tuple[str, int]]:
    """Scale, axis and one-letter names of a standing chart; the (name, value) pairs to draw."""
    rng = content.rng
    count = rng.randrange(3, 6)
    for value in range(1, 9):
        canvas.write(FLOOR - value, 0, str(value))
    canvas.rule(FLOOR - 1, 1, 11)
    labels = rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", count)
    values = [rng.randrange(1, 9) for _ in labels]
    if values.count(max(values)) > 1:  # one of them must be the largest
        values[rng.randrange(count)] = 9 if max(values) == 8 else max(values) + 1
        values = [value - 1 if max(values) == 9 and value > 1 else value for value in values]
    for place, label in enumerate(labels):
        canvas.write(FLOOR + 1, 2 + 2 * place, label)
    return list(zip(labels, values, strict=True))


def _questions(content: Content, marks: list[tuple[str, int, Box]], unit: str = "") -> list[Question]:
    """A reading question for each mark, the largest, and one comparison."""
    rng = content.rng
    questions = [ask(rng, READ, [label], f"{value}{unit}", box) for label, value, box in marks]
    label, _, box = max(marks, key=lambda mark: mark[1])
    questions.append(ask(rng, LARGEST, [], label, box))
    first, second = rng.sample(marks, 2)
    if first[1] != second[1]:
        label, _, box = max(first, second, key=lambda mark: mark[1])
        questions.append(ask(rng, COMPARE, [first[0], second[0]], label, box))
    return questions


def _colour(rng: random.Random) -> str:
    return rng.choice([name for name in COLOURS if name != "ink"])
