"""The one image decoder: bytes in, plain RGB out, or one clear error. Training, evaluation, the CLI and serving all read images here.

What a person sees in a viewer is what the model gets: orientation applied once, transparency laid on white, 16-bit greys scaled
rather than clipped (16-bit colours come out of Pillow as their high byte, at most 1 away), the first frame of an animation. Limits are
checked on the header, before a pixel is decoded. Formats are recognised by content; metadata is dropped and never quoted. A flipped byte
in a JPEG decodes without complaint and cannot be seen from the file: `check.py` has checksums for that.

Source: the list of attacks and of silent wrong readings this answers is our own survey of vLLM, TGI, SGLang and Pillow advisories
(CVE-2026-22773, CVE-2026-22778, CVE-2025-46722); the limits are our choice.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from vision_remember.data.signatures import FORMATS, describe, image_format

BACKGROUND = (255, 255, 255)  # pages are white; the same in training and in serving
NOTE_ANIMATION = "animation: first frame only"
NOTE_EXIF = "broken EXIF ignored"

_MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "PA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION_TAG = 0x0112
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_ORIENTATIONS = {number: Image.Transpose[name] for number, name in enumerate(_TURNS.split(), 2)}

# Warning filters and LOAD_TRUNCATED_IMAGES belong to the process, so only one thread at a time may change them.
_pillow_lock = threading.Lock()

Source = str | Path | bytes | Image.Image | NDArray[np.uint8]  # or a torch tensor of that form


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost before it is refused.

    Attributes:
        max_bytes: Encoded size in bytes (20 MB).
        max_pixels: Width times height in px, from the header (16 MP).
        max_aspect: Longer side over shorter side; beyond it a resize to the encoder's size would be all blur or all memory.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 4096 * 4096
    max_aspect: float = 100.0


DEFAULT_LIMITS = ImageLimits()


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        code: Machine-readable kind, such as `image.too_large`.
        why: What is wrong, with the numbers.
        fix: What to do about it.
    """

    def __init__(self, why: str, *, code: str = "image.broken", fix: str = "replace the file"):
        super().__init__(f"{why}; {fix}")
        self.code, self.why, self.fix = code, why, fix


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An RGB image and what a careful reader should know about how it was read (`NOTE_...`)."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode_image(source: Source, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Reads one image as plain RGB.

    Args:
        source: A path, the encoded bytes, or an image that is already in memory: of `PIL`, or `uint8[height, width, 3]` or
            `uint8[height, width]` of numpy or torch.
        limits: Refuse beyond these.

    Returns:
        A `PIL` image of mode RGB without metadata.

    Raises:
        ImageError: No image, missing, irregular, too large, not one of `FORMATS`, or broken; never with the address of an object in the
            text.
    """
    return decode(source, limits=limits).image


def decode(source: Source, *, limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
    """As `decode_image`, with notes on what was left out."""
    if isinstance(source, Image.Image) or hasattr(source, "__array__"):
        with _strict_pillow(limits):
            image = source if isinstance(source, Image.Image) else _from_array(np.asarray(source), limits)
            return _to_rgb(image, key_depth=8, notes=[], limits=limits)
    if isinstance(source, bytes):
        return _decode_bytes(source, limits)
    if not isinstance(source, (str, os.PathLike)):
        why = f"this is no image but of type {type(source).__name__}"
        raise ImageError(why, code="image.type", fix="give a PIL image, a uint8 array, encoded bytes or a file path")
    try:
        return _decode_bytes(read_file(source, max_bytes=limits.max_bytes), limits)
    except ImageError as error:
        name = os.fspath(source)
        shown = f"'{name}'" if name.isprintable() else ascii(name)
        raise ImageError(f"{shown}: {error.why}", code=error.code, fix=error.fix) from None


def read_file(path: str | Path, *, max_bytes: int) -> bytes:
    """Reads a regular file of at most `max_bytes`; never waits on a pipe and never reads a device.

    Raises:
        ImageError: Absent, unreadable, not a regular file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ImageError("there is no such file", code="image.missing", fix="check the name") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ImageError(f"cannot be opened ({why})", code="image.unreadable", fix="check the name") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file", code="image.not_a_file", fix="name an image file")
        if status.st_size > max_bytes:
            raise _too_many_bytes(status.st_size, max_bytes)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(descriptor)


def _decode_bytes(data: bytes, limits: ImageLimits) -> Decoded:
    if not data:
        raise ImageError("the image is empty (0 bytes)", code="image.empty")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits.max_bytes)
    if (kind := image_format(data)) is None:
        why = f"this is {describe(data)}, not one of {', '.join(FORMATS)}"
        raise ImageError(why, code="image.format", fix="convert it to PNG or JPEG")
    notes: list[str] = []
    with _strict_pillow(limits), Image.open(io.BytesIO(data), formats=(kind,)) as image:
        _check_size(image.size, limits)
        if getattr(image, "is_animated", False):  # formats without animation do not know the word
            notes.append(NOTE_ANIMATION)
        key_depth = data[24] if kind == "PNG" else 8
        return _to_rgb(image, key_depth=key_depth, notes=notes, limits=limits)


def _from_array(pixels: NDArray[np.uint8], limits: ImageLimits) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        why = f"an array {pixels.dtype}{list(pixels.shape)} is no image"
        raise ImageError(why, code="image.array", fix="give uint8[height, width, 3] or uint8[height, width]")
    _check_size(pixels.shape[1::-1], limits)
    return Image.fromarray(pixels)


def _to_rgb(image: Image.Image, *, key_depth: int, notes: list[str], limits: ImageLimits) -> Decoded:
    image.load()
    _check_size(image.size, limits)
    try:
        orientation = _orientation(image)
    except Exception:  # EXIF is hostile input to a parser that raises whatever it meets; the pixels do not need it
        orientation = None
        notes.append(NOTE_EXIF)
    image = _flatten(image, key_depth)
    if orientation in _ORIENTATIONS:
        image = image.transpose(_ORIENTATIONS[orientation])
    image.info = {}
    return Decoded(image=image, notes=tuple(notes))


def _orientation(image: Image.Image) -> int | None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"PIL\.")
        if "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # again, strictly: opening a JPEG has parsed it with a shrug
        return image.getexif().get(_ORIENTATION_TAG)


def _flatten(image: Image.Image, key_depth: int) -> Image.Image:
    """RGB of a loaded image. `key_depth` is the bit depth in which a PNG wrote the colour that means transparent."""
    key = image.info.get("transparency")
    if key is not None and key_depth == 16:
        why = "16-bit image with a transparent colour"
        raise ImageError(why, code="image.mode", fix="save it with an alpha channel")
    if image.mode in _GREY_16:
        return _scale_16_bit(image).convert("RGB")
    if image.mode not in _MODES:
        why = f"image mode {image.mode} has no fixed meaning as colour"
        raise ImageError(why, code="image.mode", fix="convert it to 8-bit RGB")
    if image.mode in ("1", "L") and key is not None:
        # Pillow compares the key as written with samples already widened to 8 bits, so 4-bit white would stay opaque.
        grey = image.convert("L")
        hidden = key * 255 // (2**key_depth - 1) if image.mode == "L" else 255 * bool(key)
        opaque = grey.point([0 if value == hidden else 255 for value in range(256)])
        return _on_background(grey.convert("RGB"), opaque)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or key is not None:
        image = image.convert("RGBA")
        return _on_background(image.convert("RGB"), image.getchannel("A"))
    return image.convert("RGB")


def _on_background(image: Image.Image, opaque: Image.Image) -> Image.Image:
    page = Image.new("RGB", image.size, BACKGROUND)
    page.paste(image, mask=opaque)
    return page


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """0..65535 to 0..255 by 257, rounded; a plain convert would turn everything above 255 white."""
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height} = {width * height}", limits.max_pixels)
    if max(size) > limits.max_aspect * min(size):
        why = f"{width} x {height} px: one side is more than {limits.max_aspect:g} times the other"
        raise ImageError(why, code="image.aspect", fix="crop it or cut it into pieces")


def _too_many_bytes(found: int, limit: int) -> ImageError:
    return ImageError(f"{found} bytes, limit {limit}", code="image.too_large", fix="save it smaller")


def _too_many_pixels(found: str, limit: int) -> ImageError:
    return ImageError(f"{found} px, limit {limit}", code="image.too_many_pixels", fix="scale it down")


@contextmanager
def _strict_pillow(limits: ImageLimits) -> Iterator[None]:
    """Turns Pillow's warnings into errors, its tolerance of truncation off, and all it raises into `ImageError`."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"PIL\.")
        # Its words about EXIF (read as a TIFF; see `_orientation`) and about a second picture inside a JPEG, which we never show.
        warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
        warnings.filterwarnings("ignore", message=".*malformed MPO")
        tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        except ImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            pixels = re.search(r"\d+", str(error))
            raise _too_many_pixels(pixels[0] if pixels else "too many", limits.max_pixels) from None
        except Exception as error:  # decoders raise whatever hostile bytes make them trip over: one name for it all
            text = re.sub(r"<[^<>]*>|0x[0-9a-fA-F]+", "", str(error)) or type(error).__name__
            raise ImageError(f"the image cannot be decoded ({ascii(text[:120])[1:-1].strip()})") from None
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
