"""Running text: read a numbered line, the word in it, or the code that stands behind a word."""

from __future__ import annotations

from vision_remember.data.synthetic.canvas import Canvas
from vision_remember.data.synthetic.content import Content
from vision_remember.data.synthetic.question import Question, ask


def draw(canvas: Canvas, content: Content) -> list[Question]:
    """Writes 3 or 4 numbered lines of a word and a code, and asks for lines, words and codes."""
    rng = content.rng
    words = content.distinct(lambda: content.word(rng.randrange(3, 5)), rng.randrange(3, 5))
    questions = []
    for line, (row, word) in enumerate(zip(canvas.lines, words, strict=False), start=1):
        code = content.code(rng.randrange(3, 5))
        canvas.write(row, 0, str(line))
        head, tail = canvas.write(row, 3, word), canvas.write(row, 8, code)
        whole = (head[0], head[1], tail[2], tail[3])
        questions += [
            ask(rng, ["Read line {0}."], [str(line)], f"{word} {code}", whole),
            ask(rng, ["What is the word in line {0}?"], [str(line)], word, head),
            ask(rng, ["What is the code after {0}?", "Which code follows {0}?"], [word], code, tail),
        ]
    rng.shuffle(questions)
    return questions
