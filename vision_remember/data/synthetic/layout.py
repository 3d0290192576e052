"""Coarse layout: where things are, how many, which colour. The control family: compression should not hurt it."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import COLOURS, Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask, exercise

SHAPES = ("circle", "square", "triangle")
PLACES = {"top left": (0, 0), "top right": (0, 6), "bottom left": (6, 0), "bottom right": (6, 6)}


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Draws 1 to 3 shapes in different quarters and asks for colour, place, shape and number."""
    rng = content.rng
    count = rng.randrange(1, 4)
    kinds = rng.sample(SHAPES, count)
    colours = rng.sample([name for name in COLOURS if name != "ink"], count)
    places = rng.sample(list(PLACES), count)
    questions = []
    for kind, colour, place in zip(kinds, colours, places, strict=True):
        (row, column), side = PLACES[place], rng.choice((4, 5))
        box = canvas.shape(row + rng.randrange(0, 7 - side), column + rng.randrange(0, 7 - side), side, kind, colour)
        questions += [
            ask(rng, ["What color is the {0}?"], [kind], colour, box),
            ask(rng, ["Where is the {0}?"], [kind], place, box),
            ask(rng, ["What shape is {0}?"], [colour], kind, box),
            exercise(1, f"Where is {colour}?", place, box),
            exercise(1, f"What is {place}?", colour, box),
        ]
    whole = (0, 0, *canvas.image.size)
    questions.append(ask(rng, ["How many shapes are there?"], [], str(count), whole))
    return questions
