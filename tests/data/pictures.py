"""Image files made by hand, for the tests: PNGs chunk by chunk (Pillow will not write the odd ones) and encoded pictures."""

import io
import struct
import zlib

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA = 0, 2, 3, 4


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: list[bytes], *, depth: int = 8, colour: int = GREY, extra: bytes = b"") -> bytes:
    """A PNG from raw sample bytes, one entry of `rows` per row; `extra` are chunks between header and pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def checkers(width: int = 16, height: int = 12) -> Image.Image:
    """A picture whose every quarter has another colour, so that turning it shows."""
    image = Image.new("RGB", (width, height), (200, 0, 0))
    image.paste((0, 200, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 200), (0, height // 2, width // 2, height))
    return image
