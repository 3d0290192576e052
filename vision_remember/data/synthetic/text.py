"""Running text: read a line, a word of it, or the code that stands behind a word."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes 3 to 5 lines of a word and a code, and asks for lines, first words and codes."""
    rng = content.rng
    count = rng.randrange(3, 6)
    step = 2
    first = rng.randrange(0, min(3, 12 - step * (count - 1)))
    words = content.distinct(lambda: content.word(rng.randrange(3, 6)), count)
    questions = []
    for line, word in enumerate(words, start=1):
        row, column = first + step * (line - 1), 0
        code = content.code(rng.randrange(3, 6))
        head = canvas.write(row, column, word)
        tail = canvas.write(row, column + len(word) + 1, code)
        whole = (head[0], head[1], tail[2], tail[3])
        questions += [
            ask(rng, ["Read line {0}.", "What does line {0} say?"], [str(line)], f"{word} {code}", whole),
            ask(rng, ["What is the first word of line {0}?", "Which word starts line {0}?"], [str(line)], word, head),
            ask(rng, ["What is the code after {0}?", "Which code follows {0}?"], [word], code, tail),
        ]
    return questions
