"""Forms: field names with their values."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask

PHRASINGS = ["What is the value of {0}?", "What is the {0}?", "Read the field {0}."]


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes 3 to 6 labelled fields and asks for the value of each."""
    rng = content.rng
    count = rng.randrange(3, 7)
    step = rng.choice((1, 2)) if count < 6 else 1
    first = rng.randrange(0, min(3, 12 - step * (count - 1)))
    is_ruled, is_aligned = rng.random() < 0.5, rng.random() < 0.5
    questions = []
    for place, label in enumerate(content.labels(count, longest=5)):
        row = first + step * place
        canvas.write(row, 0, f"{label}:")
        column = 7 if is_aligned else len(label) + 2
        makers = [
            lambda: content.number(3),
            lambda: content.number(4),
            content.amount,
            lambda: content.code(4),
            lambda: content.word(4),
        ]
        value = rng.choice(makers)()
        box = canvas.write(row, column, value)
        if is_ruled:
            canvas.rule(row, 0, 12)
        questions.append(ask(rng, PHRASINGS, [label], value, box))
    return questions
