"""Forms: field names with their values."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask

PHRASINGS = ["What is the value of {0}?", "What is the {0}?", "Read the field {0}."]


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes 3 or 4 labelled fields and asks for the value of each."""
    rng = content.rng
    is_ruled = rng.random() < 0.5
    makers = [
        lambda: content.number(3),
        lambda: content.number(4),
        content.amount,
        lambda: content.code(4),
        lambda: content.word(4),
    ]
    questions = []
    for row, label in zip(canvas.lines, content.labels(rng.randrange(3, 5), longest=5), strict=False):
        canvas.write(row, 0, f"{label}:")
        value = rng.choice(makers)()
        box = canvas.write(row, 6, value)
        if is_ruled:
            canvas.rule(row, 0, 12)
        questions.append(ask(rng, PHRASINGS, [label], value, box))
    return questions
