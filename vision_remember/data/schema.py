"""What a sample is: some images, some turns, and where it came from. Every loader produces it and the collator consumes it.

Text is text: the only way to place an image is an `IMAGE` part, so nothing a person wrote can become an image slot. A `Sample` that
exists is well-formed: the checks run in its constructor and report everything that is wrong with it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from PIL import Image

from vision_remember.data.files import resolve_under
from vision_remember.data.images import DEFAULT_LIMITS, Decoded, ImageError, ImageLimits, decode, read_file

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a data set, readable by people and programs.

    Attributes:
        code: Kind, such as `image.missing` or `turns.order`.
        where: File and place: `train.json#1041 (id 'a7')`.
        why: What is wrong, with both numbers.
        fix: What to do about it.
    """

    code: str
    where: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}; {self.fix} [{self.code}]"

    def as_dict(self) -> dict[str, str]:
        """Plain dict for JSON."""
        return asdict(self)


class DataError(ValueError):
    """Data that cannot be used; `problems` has everything that was found, the message says it in words."""

    def __init__(self, message: str, *, problems: Sequence[Problem] = ()):
        super().__init__(message)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> DataError:
        """The error that reports these problems, one a line."""
        return cls("\n".join(str(problem) for problem in problems), problems=problems)


@dataclass(frozen=True)
class ImageSlot:
    """The place of one image among the parts of a turn."""


IMAGE = ImageSlot()


@dataclass(frozen=True)
class Turn:
    """What one side says: `role` is system, user or assistant; `parts` are texts and `IMAGE`."""

    role: str
    parts: tuple[str | ImageSlot, ...]

    @property
    def text(self) -> str:
        """The words of the turn, without image slots."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image named by a record: a path relative to `root`, which it may not leave."""

    name: str
    root: str

    def read(self, *, max_bytes: int) -> bytes:
        """The encoded bytes; raises `ImageError` for a name that is forbidden, absent or irregular."""
        return read_file(resolve_under(self.root, self.name), max_bytes=max_bytes)


ImageRef = ImageFile | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation about some images.

    Attributes:
        id: Name in messages and reports, unique within its data set.
        images: One reference per image slot, in reading order: a file under the data root, encoded bytes, or an image in memory.
        turns: An optional system turn, then user and assistant in alternation, ending with an assistant's answer.
        source: Where it came from: `train.json#1041`.
        family: Kind of page, for scores per family.
        evidence: For each answer the box (x0, y0, x1, y1) in px that shows it, where known.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    source: str
    family: str | None = None
    evidence: tuple[tuple[float, float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        if problems := [self.problem(code, why, fix) for code, why, fix in _faults(self)]:
            raise DataError.of(problems)

    @property
    def where(self) -> str:
        """How messages name this sample."""
        return name_sample(self.source, self.id)

    def problem(self, code: str, why: str, fix: str) -> Problem:
        """A problem of this sample."""
        return Problem(code=code, where=self.where, why=why, fix=fix)

    def messages(self) -> list[dict]:
        """The turns in Hugging Face chat format, every content a list of parts."""
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.parts
                ],
            }
            for turn in self.turns
        ]

    def read_image(self, index: int, *, limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
        """Decodes image `index`.

        Raises:
            DataError: It cannot be used; names the sample.
        """
        reference = self.images[index]
        try:
            return decode(
                reference.read(max_bytes=limits.max_bytes) if isinstance(reference, ImageFile) else reference,
                limits=limits,
            )
        except ImageError as error:
            name = f" {ascii(reference.name)}" if isinstance(reference, ImageFile) else ""
            why = f"image {index + 1} of {len(self.images)}{name}: {error.why}"
            raise DataError.of([self.problem(error.code, why, error.fix)]) from None

    def load_images(self, *, limits: ImageLimits = DEFAULT_LIMITS) -> list[Image.Image]:
        """All images as RGB; raises `DataError` as `read_image` does."""
        return [self.read_image(index, limits=limits).image for index in range(len(self.images))]


class SampleSequence(Protocol):
    """What loaders return: samples by number, made when asked for, and a fingerprint of the data behind them."""

    @property
    def fingerprint(self) -> str:
        """Changes when the records change; checkpoints keep it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def name_sample(source: str, sample_id: str) -> str:
    """`train.json#1041 (id 'a7')`, with control characters escaped."""
    return f"{source} (id {ascii(sample_id)})"


def _faults(sample: Sample) -> Iterator[tuple[str, str, str]]:
    turns = sample.turns
    if not turns:
        yield "turns.empty", "the conversation is empty", "give it a question and an answer"
        return
    yield from _role_faults(turns)
    for number, turn in enumerate(turns, 1):
        here = f"turn {number} ({ascii(turn.role)})"
        if turn.role != "user" and any(isinstance(part, ImageSlot) for part in turn.parts):
            yield "turns.image_place", f"{here} holds an image slot", "place images in user turns"
        if turn.role == "assistant" and not turn.text.strip():
            yield "turns.empty_answer", f"{here} is an empty answer", "write the answer or remove the sample"
        if turn.role == "user" and not turn.parts:
            yield "turns.empty_question", f"{here} is empty", "write the question or place an image"
        if any(not _is_unicode(part) for part in turn.parts if isinstance(part, str)):
            yield "text.surrogate", f"{here} holds half a character (a lone surrogate)", "write the whole character"
    num_slots = sum(isinstance(part, ImageSlot) for turn in turns for part in turn.parts)
    if num_slots != len(sample.images):
        yield (
            "images.count",
            f"{num_slots} image slots, {len(sample.images)} images",
            "give every image exactly one <image> mark or image part",
        )


def _role_faults(turns: Sequence[Turn]) -> Iterator[tuple[str, str, str]]:
    unknown = [turn.role for turn in turns if turn.role not in ROLES]
    if unknown:
        yield "turns.role", f"unknown role {ascii(unknown[0])}", f"use {', '.join(ROLES)} (or human, gpt)"
        return
    talk = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(talk):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            place = number + 1 + len(turns) - len(talk)
            yield (
                "turns.order",
                f"turn {place} is from {turn.role}, expected {expected}",
                "let user and assistant alternate",
            )
            return
    if len(talk) % 2 or not talk:
        yield "turns.no_answer", "the conversation does not end with an answer", "add the assistant's answer"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
