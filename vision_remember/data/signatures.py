"""What a file is, by its first bytes and never by its name: the image formats we read, and good names for what people send instead."""

from __future__ import annotations

import re

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_IMAGES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
}
_OTHERS = {
    "an HTML page": rb"\s*(<!doctype html|<html)",
    "an SVG drawing": rb"\s*(<\?xml.{0,200})?<svg",
    "a TIFF": rb"II\*\0|MM\0\*",
    "a PDF": rb"%PDF",
    "an EPS or PostScript file": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a PSD": rb"8BPS",
    "a FITS file": rb"SIMPLE  =",
    "an FPX or other OLE file": rb"\xd0\xcf\x11\xe0",
    "a WMF drawing": rb"\xd7\xcd\xc6\x9a",
    "a HEIC or AVIF picture": rb".{4}ftyp(heic|heix|mif1|avif)",
    "text": rb"[\t\n\r\x20-\x7e]{1,64}\Z|[\t\n\r\x20-\x7e]{64}",
}


def image_format(data: bytes) -> str | None:
    """Which of `FORMATS` these bytes begin as, or None."""
    return next((name for name, start in _IMAGES.items() if re.match(start, data[:16], re.DOTALL)), None)


def describe(data: bytes) -> str:
    """Words for bytes that are none of `FORMATS`: "a PDF", "an HTML page"."""
    head = data[:512]
    found = (name for name, start in _OTHERS.items() if re.match(start, head, re.DOTALL | re.IGNORECASE))
    return next(found, "an unknown kind of file")
