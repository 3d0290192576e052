"""Tasks: what is asked. One file per task; the name of the file is the name of the task.

A task file defines a frozen, keyword-only dataclass `Config` of its options and `questions(config) -> list[Question]`. Questions are asked
one by one, in a conversation of their own, as a user of `ask` would. A published benchmark also brings its metric: `benchmark.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vision_remember import plugins
from vision_remember.data.schema import ImageSlot, Sample, Turn
from vision_remember.evaluation.benchmark import Item
from vision_remember.model.engine import Request

ROOM = "evaluation.tasks"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one page.

    Attributes:
        sample: the page and its conversation.
        asked: number of the user turn that asks, counted in `sample.turns`.
        evidence: box (x0, y0, x1, y1) in px that shows the answer, where known.
    """

    sample: Sample
    asked: int
    evidence: tuple[float, float, float, float] | None

    @property
    def id(self) -> str:
        """The page's id and the number of the turn."""
        return f"{self.sample.id}#{self.asked}"

    @property
    def page(self) -> str:
        """Id of the page; questions of one page are resampled together."""
        return self.sample.id

    @property
    def family(self) -> str:
        """The group its score is reported in."""
        return self.sample.family or "all"

    @property
    def text(self) -> str:
        """The words of the question."""
        return self.sample.turns[self.asked].text.strip()

    @property
    def answers(self) -> tuple[str, ...]:
        """Accepted answers."""
        return (self.sample.turns[self.asked + 1].text,)

    @property
    def num_images(self) -> int:
        """Images that have been shown by the time it is asked."""
        return sum(isinstance(part, ImageSlot) for turn in self.sample.turns[: self.asked + 1] for part in turn.parts)

    def request(self) -> Request:
        """Return what the engine is asked: the system turn if there is one, every image shown so far, and this question alone.

        A question that brings no image of its own gets those of the turns before it, laid out as in a first turn: images, a line break,
        the words. That is how training data in LLaVA's layout spells a first question.
        """
        turns = self.sample.turns
        parts: tuple[str | ImageSlot, ...] = turns[self.asked].parts
        own = sum(isinstance(part, ImageSlot) for part in parts)
        if missing := self.num_images - own:
            opening = (ImageSlot(),) * missing
            parts = (*opening, *parts) if own else (*opening, f"\n{self.text}")
        system = [turn for turn in turns[:1] if turn.role == "system"]
        messages = [_message(turn) for turn in (*system, Turn("user", parts))]
        return Request(
            messages=messages, images=[self.sample.read_image(index).image for index in range(self.num_images)]
        )


def load_task(options: Mapping[str, Any]) -> list[Question]:
    """Return the questions of `{"type": name, **options}`.

    Raises:
        ValueError: an unknown task, a misspelt option, or no question at all.
    """
    return _questions(options)


def benchmark(name: str) -> ModuleType | None:
    """Return the module of a task if it is a published benchmark, else None."""
    module = plugins.load(ROOM, name)
    return module if "score" in vars(module) else None


def load_benchmark(options: Mapping[str, Any]) -> list[Item]:
    """Return the questions of a published benchmark; raises as `load_task` does, and where the local copy cannot be read."""
    return _questions(options)


def _questions(options: Mapping[str, Any]) -> list[Any]:
    config = plugins.build_config(ROOM, options)
    questions = plugins.load(ROOM, options["type"]).questions(config)
    if not questions:
        raise ValueError(f"task {options['type']} with {dict(options)} asks no question: give it at least one page")
    return questions


def questions_of(sample: Sample) -> Iterator[Question]:
    """Yield every question of a sample: each user turn with the assistant's turn that answers it."""
    boxes = iter(sample.evidence or ())
    for number, turn in enumerate(sample.turns):
        if turn.role == "user":
            yield Question(sample=sample, asked=number, evidence=next(boxes, None))


def _message(turn: Turn) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
    return {"role": turn.role, "content": parts}
