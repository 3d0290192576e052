"""From one record, as files hold it, to one `Sample`.

Two layouts are understood, in every kind of file:

    LLaVA, sharegpt   {"id", "image": "a.png" or [..], "conversations": [{"from": "human" or "gpt", "value": "<image>\\nWhat?"}, ..]}
    chat messages     {"id", "images": [..], "messages": [{"role", "content": "text" or [{"type": "image"}, {"type": "text", ..}]}, ..]}

**What `<image>` means.** In a list of parts it is ordinary text, always: there only `{"type": "image"}` places an image. Where a whole
turn is one string, people place images by writing `<image>`, so in the *user's* strings of a LLaVA record, or of a messages record that
has images and no image part, each mark is one image slot; the counts must agree. In answers, system text, and messages records without
images it is ordinary text. A LLaVA question that has to quote `<image>` is written as parts.

What stands around a mark is kept as written, the line break of `<image>\\nWhat?` included.

Source: haotian-liu/LLaVA docs/Finetune_Custom_Data.md; which strings carry marks is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vision_remember.data.schema import (
    IMAGE,
    DataError,
    ImageFile,
    ImageRef,
    ImageSlot,
    Problem,
    Sample,
    Turn,
    name_sample,
)

MARK = "<image>"
_ROLES = {"human": "user", "gpt": "assistant"}
_KEYS = {"turns": ("conversations", "messages"), "images": ("image", "images")}


class _Fault(ValueError):
    """A record that cannot become a sample; carries code, why and fix."""


def read_record(record: Any, *, root: str, source: str, number: int) -> Sample:
    """Makes a sample of one record.

    Args:
        record: A parsed JSON object or a row; images are names under `root`, encoded bytes, or `{"bytes", "path"}`.
        root: Folder that image names are relative to.
        source: File the record is in, for messages.
        number: Its place there, counted from 0.

    Raises:
        DataError: The record or its conversation is malformed; everything found is listed, with file, number and id.
    """
    place = f"{source}#{number}"
    sample_id = record.get("id") if isinstance(record, dict) else None
    sample_id = str(number) if sample_id is None else str(sample_id)
    try:
        if not isinstance(record, dict):
            raise _Fault(
                "record.type", f"the record is a {_kind(record)}", "write an object with conversations or messages"
            )
        key, turns = _one_of(record, "turns")
        _, listed = _one_of(record, "images")
        if key is None:
            raise _Fault("record.turns", "the record has no conversations and no messages", "write one of the two")
        if not isinstance(turns, list):
            raise _Fault("record.turns", f"{key} is a {_kind(turns)}", "write a list of turns")
        images = [_image(image, root) for image in _as_list(listed)]
        read = _llava_turns(turns) if key == "conversations" else _message_turns(turns, images, root)
        return Sample(
            id=sample_id,
            images=tuple(images),
            turns=tuple(read),
            source=place,
            family=_family(record),
            evidence=_evidence(record),
        )
    except _Fault as fault:
        code, why, fix = fault.args
        raise DataError.of([Problem(code=code, where=name_sample(place, sample_id), why=why, fix=fix)]) from None


def _llava_turns(turns: Sequence[Any]) -> list[Turn]:
    read = []
    for number, turn in enumerate(turns, 1):
        role, value = _fields(turn, number, ("from", "value"))
        role = _ROLES.get(role, role)
        if not isinstance(value, str):
            raise _Fault("turns.value", f"value of turn {number} is a {_kind(value)}", "write a string")
        read.append(Turn(role, split_marks(value) if role == "user" else (value,)))
    return read


def _message_turns(turns: Sequence[Any], images: list[ImageRef], root: str) -> list[Turn]:
    """Reads messages; images that parts carry themselves are appended to `images`."""
    fields = [_fields(turn, number, ("role", "content")) for number, turn in enumerate(turns, 1)]
    own: list[ImageRef] = []
    read = []
    for number, (role, content) in enumerate(fields, 1):
        if not isinstance(content, (str, list)):
            raise _Fault(
                "turns.value", f"content of turn {number} is a {_kind(content)}", "write a string or a list of parts"
            )
        parts = (content,) if isinstance(content, str) else tuple(_part(part, number, own, root) for part in content)
        read.append(Turn(_ROLES.get(role, role), parts))
    has_slots = any(isinstance(part, ImageSlot) for turn in read for part in turn.parts)
    if own and images:
        raise _Fault(
            "images.twice",
            f"{len(own)} images in the parts and {len(images)} in the list",
            "write them in one of the two",
        )
    if images and not has_slots:
        read = [
            Turn("user", split_marks(content)) if turn.role == "user" and isinstance(content, str) else turn
            for turn, (_, content) in zip(read, fields, strict=True)
        ]
    images.extend(own)
    return read


def split_marks(text: str) -> tuple[str | ImageSlot, ...]:
    """Cuts a string at its `<image>` marks: `"<image>\\nWhat?"` gives `(IMAGE, "\\nWhat?")`."""
    first, *others = text.split(MARK)
    parts: list[str | ImageSlot] = [first]
    for following in others:
        parts += [IMAGE, following]
    return tuple(part for part in parts if part != "")


def _part(part: Any, number: int, own: list[ImageRef], root: str) -> str | ImageSlot:
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image":
        carried = [part[key] for key in ("image", "path") if part.get(key) is not None]
        own.extend(_image(image, root) for image in carried[:1])
        return IMAGE
    raise _Fault(
        "turns.part",
        f"turn {number} has a part {ascii(kind)[:40]}",
        'use {"type": "image"} and {"type": "text", "text": ..}',
    )


def _fields(turn: Any, number: int, keys: tuple[str, str]) -> tuple[str, Any]:
    if not isinstance(turn, dict):
        raise _Fault("turns.type", f"turn {number} is a {_kind(turn)}", f"write an object with {keys[0]} and {keys[1]}")
    for key in keys:
        if key not in turn:
            raise _Fault("turns.key", f"turn {number} has no {ascii(key)}", f"write {keys[0]} and {keys[1]}")
    if not isinstance(turn[keys[0]], str):
        raise _Fault("turns.role", f"{keys[0]} of turn {number} is a {_kind(turn[keys[0]])}", "write a string")
    return turn[keys[0]], turn[keys[1]]


def _one_of(record: dict, name: str) -> tuple[str | None, Any]:
    present = [key for key in _KEYS[name] if record.get(key) is not None]
    if len(present) > 1:
        raise _Fault(f"record.{name}", f"the record has both {present[0]} and {present[1]}", "keep one of them")
    return (present[0], record[present[0]]) if present else (None, None)


def _image(image: Any, root: str) -> ImageRef:
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str):
        return ImageFile(name=image, root=root)
    if isinstance(image, bytes):
        return image
    raise _Fault("images.type", f"an image is a {_kind(image)}", "write a file name")


def _family(record: dict) -> str | None:
    family = record.get("family")
    if family is not None and not isinstance(family, str):
        raise _Fault("record.family", f"family is a {_kind(family)}", "write a string or leave it out")
    return family


def _evidence(record: dict) -> tuple[tuple[float, float, float, float], ...] | None:
    boxes = record.get("evidence")
    if boxes is None:
        return None
    if not isinstance(boxes, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box) for box in boxes
    ):
        raise _Fault("record.evidence", "evidence is not a list of boxes", "write one [x0, y0, x1, y1] for each answer")
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes)


def _as_list(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, (int, float)) else type(value).__name__)
