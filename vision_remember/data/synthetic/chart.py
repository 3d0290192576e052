"""Charts: bars (lying, standing), lines and pies; read a value, find the largest, compare two."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from vision_remember.data.synthetic.canvas import COLOURS, Box, Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask, exercise

READ = ["What is the value of {0}?", "How much is {0}?"]
LARGEST = ["Which has the largest value?", "Which is the largest?"]
COMPARE = ["Which is larger, {0} or {1}?"]
FLOOR = 6  # rows of a drawing above its legend


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Draws one of the four kinds of chart and asks for values, the largest, and which of two is larger."""
    return content.rng.choice((lying_bars, standing_bars, line, pie))(canvas, content)


def lying_bars(canvas: Canvas, content: Content) -> list[Question]:
    """One bar a line, its value printed on the right."""
    count = content.rng.randrange(3, 5)
    labels, values = content.distinct(lambda: content.word(3), count), content.values(count)
    colour = _colour(content.rng)
    marks = []
    for row, label, value in zip(canvas.lines, labels, values, strict=False):
        canvas.write(row, 0, label)
        canvas.bar(row, 3, 1 + value // 20, 1, colour)
        marks.append((label, value, canvas.write(row, 9, str(value))))
    return _questions(content, marks)


def standing_bars(canvas: Canvas, content: Content) -> list[Question]:
    """Bars of whole heights over a row of names and a row of values."""
    colour = _colour(content.rng)
    marks = _series(canvas, content)
    for place, (_, value, _) in enumerate(marks):
        canvas.bar(FLOOR - _height(value), 3 * place, 2, _height(value), colour)
    return _questions(content, marks)


def line(canvas: Canvas, content: Content) -> list[Question]:
    """Dots joined by a line over a row of names and a row of values."""
    colour = _colour(content.rng)
    marks = _series(canvas, content)
    places = [(FLOOR - _height(value), 3 * place) for place, (_, value, _) in enumerate(marks)]
    boxes = [canvas.box(*place) for place in places]
    for start, end in zip(boxes, boxes[1:], strict=False):
        canvas.stroke(start, end, colour)
    for place in places:
        canvas.marker(*place, colour)
    return _questions(content, marks)


def pie(canvas: Canvas, content: Content) -> list[Question]:
    """A disc with a legend of names and percentages."""
    rng = content.rng
    count = rng.randrange(2, 5)
    cuts = sorted(rng.sample(range(10, 95, 5), count - 1))
    shares = [end - start for start, end in zip([0, *cuts], [*cuts, 100], strict=True)]
    if len({share // 10 for share in shares}) < count or min(shares) < 10:
        return pie(canvas, content)
    colours = rng.sample([name for name in COLOURS if name != "ink"], count)
    canvas.pie(0, 3, 6, list(zip(colours, shares, strict=True)))
    marks = []
    labels = content.distinct(content.header, count)
    for place, (colour, share, label) in enumerate(zip(colours, shares, labels, strict=True)):
        row, column = canvas.lines[2 + place // 2], 6 * (place % 2)
        canvas.swatch(row, column, colour)
        canvas.write(row, column + 1, label)
        marks.append((label, share, canvas.write(row, column + 3, f"{share}%")))
    return _questions(content, marks, unit="%")


def _series(canvas: Canvas, content: Content) -> list[tuple[str, int, Box]]:
    """Axis, and below it a line of names over a line of values: (name, value, box of the value)."""
    count = content.rng.randrange(3, 5)
    canvas.rule(FLOOR - 1, 0, 12)
    names, values = content.distinct(content.header, count), content.values(count)
    marks = []
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        canvas.write(canvas.lines[2], 3 * place, name)
        marks.append((name, value, canvas.write(canvas.lines[3], 3 * place, str(value))))
    return marks


def _height(value: int) -> int:
    """1 to 6 rows for 10 to 99."""
    return 1 + (value - 10) // 15


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
    return questions + _exercises(marks, unit)


def _exercises(marks: list[tuple[str, int, Box]], unit: str) -> list[Question]:
    """The whole chart, as drawn and sorted, and every comparison, bare and with the values spelt out first; then both ends of the order."""
    box = marks[0][2]
    falling = sorted(marks, key=lambda mark: -mark[1])
    (most, high, _), (least, low, _) = falling[0], falling[-1]
    names = " ".join(label for label, _, _ in falling)
    found = [
        exercise(1, "Read the chart.", _pairs(marks, unit), box),
        exercise(1, "Sort from large to small.", _pairs(falling, unit), box),
        exercise(1, "Sort the names from large to small.", names, box),
        exercise(2, "Sort the names from large to small.", names, box),
        exercise(2, "What is the largest value?", f"{high}{unit}", box),
        exercise(2, "What is the smallest value?", f"{low}{unit}", box),
        exercise(2, "Which is the smallest?", least, box),
        *(exercise(2, phrasing, most, box) for phrasing in LARGEST),
    ]
    for first, second in itertools.permutations(marks, 2):
        if first[1] != second[1]:
            larger, smaller = (choose(first, second, key=lambda mark: mark[1])[0] for choose in (max, min))
            question, other = COMPARE[0].format(first[0], second[0]), f"Which is smaller, {first[0]} or {second[0]}?"
            spelt = f"{_pairs([first, second], unit)} {larger}"
            found.append(exercise(1, question, larger, box))
            found.append(exercise(1, f"Compare {first[0]} and {second[0]}.", spelt, box))
            found += [exercise(2, question, larger, box), exercise(2, other, smaller, box)]
    return found


def _pairs(marks: Sequence[tuple[str, int, Box]], unit: str) -> str:
    return " ".join(f"{label} {value}{unit}" for label, value, _ in marks)


def _colour(rng: random.Random) -> str:
    return rng.choice([name for name in COLOURS if name != "ink"])
