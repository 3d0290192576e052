"""From an image part of a message to the square canvas an encoder takes: one decoder, one geometry, nothing fetched.

Unless the model says otherwise, a page is fitted whole onto the encoder's canvas (long side resized, the rest filled with the encoder's
mean colour, as LLaVA-1.5's `expand2square`), because a centre crop would cut off the text at its edges. Resizing comes before padding, so
a very long strip never grows into a huge square. The same canvas is made in training, evaluation and serving, and its offsets place
evidence boxes in plots. The other modes are those of `tiling.Resolution`; how LLaVA's checkpoints rounded is kept, so that a converted
model sees the same pixels.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from vision_remember.data.images import Source, decode_image
from vision_remember.geometry import Grid
from vision_remember.model.chat import read_message
from vision_remember.tiling import Layout, Size, content

PAYLOAD_KEYS = ("image", "path", "url", "base64")
PAGE = Grid(1, 1)  # the view that every encoder sees


def load_image_processor(vision: str) -> BaseImageProcessor:
    """An encoder's own image processor, or, where that needs torchvision (DINOv3), a plain one with its mean, spread and filter.

    Args:
        vision: Folder or hub id of the encoder.
    """
    try:
        return AutoImageProcessor.from_pretrained(vision, backend="pil")
    except ImportError:
        return ViTImageProcessorPil.from_pretrained(vision)


def frames_as_images(messages: Sequence[dict]) -> list[dict]:
    """A conversation whose videos are images: each frame of `{"type": "video", "frames": [...]}` becomes an image part of its own.

    Args:
        messages: Hugging Face chat format. A frame is what an image part may carry under `image`; frames may also be one array
            `uint8[frames, height, width, 3]`.

    Raises:
        ValueError: A video without frames, or a malformed message with one; names `messages[i].content[j]`.
    """
    return [_with_frames(message, number) for number, message in enumerate(messages)]


def carried_images(messages: Sequence[dict]) -> list[Image.Image]:
    """Read the images and frames that the parts of a conversation carry, in reading order.

    Args:
        messages: Hugging Face chat format, checked before (`chat.read_message`).

    Raises:
        ValueError: An image cannot be read; names `messages[i].content[j]`, and `.frames[k]` of a video.
    """
    return [
        image
        for number, message in enumerate(messages)
        if not isinstance(message["content"], str)
        for index, part in enumerate(message["content"])
        for image in _images_of_part(part, f"messages[{number}].content[{index}]")
    ]


def image_of_part(part: dict, where: str) -> Image.Image | None:
    """Read the image that a `{"type": "image"}` part carries, if it carries one.

    Args:
        part: May hold `image` (what `decode_image` reads), `path`, `base64`, or `url` with a `data:` URL.
        where: Place of the part, for error messages.

    Returns:
        An RGB image, or None when the part is an empty slot.

    Raises:
        ValueError: Several payloads, an unreadable image, or a URL that would have to be fetched.
    """
    payloads = [key for key in PAYLOAD_KEYS if part.get(key) is not None]
    if not payloads:
        return None
    if len(payloads) > 1:
        raise ValueError(f"{where} carries {len(payloads)} images ({', '.join(payloads)}); one part is one image")
    key, payload = payloads[0], part[payloads[0]]
    if key == "url":
        header, comma, encoded = str(payload).partition(",")
        if not (header.startswith("data:image/") and header.endswith(";base64") and comma):
            raise ValueError(f"{where}.url is not a base64 data: URL; nothing is fetched, pass the image or its path")
        key, payload = "base64", encoded
    if key == "base64":
        try:
            payload = base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise ValueError(f"{where} is not valid base64") from None
    return as_rgb(payload, where)


def as_rgb(image: Source, where: str) -> Image.Image:
    """An RGB image by the one decoder."""
    try:
        return decode_image(image)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def all_rgb(images: Sequence[Source]) -> list[Image.Image]:
    """RGB images; the first that cannot be read is named by its place."""
    return [as_rgb(image, f"images[{index}]") for index, image in enumerate(images)]


def fit(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image lands on the encoder's canvas.

    Args:
        size: Width and height of the image, in pixels.
        canvas: Width and height of the canvas, in pixels.

    Returns:
        `(left, top, width, height)` of the resized image on the canvas. Example: a 100 x 50 page on a 48 x 48 canvas lands at
        `(0, 12, 48, 24)`.
    """
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    width, height = (min(limit, max(1, round(side * scale))) for side, limit in zip(size, canvas, strict=True))
    return (canvas[0] - width) // 2, (canvas[1] - height) // 2, width, height


def pixel_shape(image_size: Sequence[int], views: Sequence[Grid]) -> tuple[int, ...]:
    """Shape of the pixels of one image.

    Args:
        image_size: Height and width of the encoder's canvas in pixels.
        views: Enlarged pages that are read beside the page itself.

    Returns:
        `(3, height, width)`, or `(1 + X, 3, height, width)` where the views have X crops in all; the page itself comes first.
    """
    num_crops = sum(view.num_cells for view in views)
    return (*((1 + num_crops,) if num_crops else ()), 3, *image_size)


def crops(
    image: Image.Image, view: Grid, canvas: tuple[int, int], processor: BaseImageProcessor, mode: str = "pad"
) -> list[Image.Image]:
    """The page enlarged over a grid of canvases, as crops of one canvas each, row by row; `PAGE` is the page itself.

    Args:
        image: Any size.
        view: Rows and columns of canvases.
        canvas: Width and height of one canvas in pixels.
        processor: The encoder's image processor; its mean and resampling filter are used.
        mode: `pad`, `resize` or `crop`, as in `tiling.Resolution`.
    """
    size = (view.width * canvas[0], view.height * canvas[1])
    return _cut(place_on_canvas(image, size, processor, mode), view, canvas)


def tiles(
    image: Image.Image, layout: Layout, canvas: tuple[int, int], processor: BaseImageProcessor
) -> list[Image.Image]:
    """The tiles of an any-resolution image: fitted onto the layout's canvas, centred on black, cut row by row.

    Args:
        image: Any size.
        layout: Of an image of this size.
        canvas: Width and height of one tile in pixels.
        processor: The encoder's image processor; its resampling filter is used.

    Source: transformers `models/llava_next/image_processing_pil_llava_next.py`, `get_image_patches`.
    """
    if layout.tiles is None:
        return []
    top, left, height, width = content(size_of(image), layout.canvas)
    background = Image.new("RGB", layout.canvas[::-1])
    background.paste(_resized(image, (width, height), processor), (left, top))
    return _cut(background, layout.tiles, canvas)


def place_on_canvas(
    image: Image.Image, canvas: tuple[int, int], processor: BaseImageProcessor, mode: str = "pad"
) -> Image.Image:
    """Bring an RGB image onto a canvas.

    Args:
        image: Any size.
        canvas: Width and height in pixels.
        processor: The encoder's image processor; its mean and resampling filter are used.
        mode: `pad` fits it whole and fills the rest with the mean colour, `resize` stretches it, `crop` fills the canvas and cuts.
    """
    if mode == "resize":
        return _resized(image, canvas, processor)
    if mode == "crop":
        width, height = _covering(image.size, canvas)
        left, top = (width - canvas[0]) // 2, (height - canvas[1]) // 2
        return _resized(image, (width, height), processor).crop((left, top, left + canvas[0], top + canvas[1]))
    left, top, width, height = fit(image.size, canvas)
    image = _resized(image, (width, height), processor)
    if image.size == canvas:
        return image
    background = Image.new("RGB", canvas, tuple(round(255 * channel) for channel in processor.image_mean))
    background.paste(image, (left, top))
    return background


def size_of(image: Image.Image) -> Size:
    """Height and width of an image in pixels."""
    return image.height, image.width


def _with_frames(message: dict, number: int) -> dict:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, (list, tuple)) or not any(map(_is_video, content)):
        return message
    # Checked here, while a part still has the number its user gave it.
    read_message({**message, "content": [{"type": "image"} if _is_video(part) else part for part in content]}, number)
    parts: list = []
    for index, part in enumerate(content):
        if _is_video(part):
            frames = _frames(part, f"messages[{number}].content[{index}]")
            parts += [{"type": "image", "image": frame} for frame in frames]
        else:
            parts.append(part)
    return {**message, "content": parts}


def _is_video(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "video"


def _frames(part: dict, where: str) -> list:
    frames: Any = part.get("frames")
    if hasattr(frames, "__array__"):
        if frames.ndim != 4:
            raise ValueError(
                f"{where}.frames is an array of shape {list(frames.shape)}; give [frames, height, width, 3] or a list of images"
            )
        frames = list(frames)
    if not isinstance(frames, (list, tuple)) or not frames:
        raise ValueError(
            f"{where} is a video without frames; there is no video decoder here, give the frames: "
            "{'type': 'video', 'frames': [image, ...]}"
        )
    return list(frames)


def _images_of_part(part: dict, where: str) -> list[Image.Image]:
    if _is_video(part):
        return [as_rgb(frame, f"{where}.frames[{index}]") for index, frame in enumerate(_frames(part, where))]
    image = image_of_part(part, where) if part["type"] == "image" else None
    return [] if image is None else [image]


def _cut(page: Image.Image, view: Grid, canvas: tuple[int, int]) -> list[Image.Image]:
    width, height = canvas
    corners = [(column * width, row * height) for row in range(view.height) for column in range(view.width)]
    return [page.crop((left, top, left + width, top + height)) for left, top in corners]


def _covering(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image that just covers a canvas; rounded down, as CLIP's processor does."""
    if size[0] * canvas[1] <= size[1] * canvas[0]:
        return canvas[0], size[1] * canvas[0] // size[0]
    return size[0] * canvas[1] // size[1], canvas[1]


def _resized(image: Image.Image, size: tuple[int, int], processor: BaseImageProcessor) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling(processor.resample))
