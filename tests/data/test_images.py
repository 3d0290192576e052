"""The decoder shows a model what a viewer shows a person, and refuses the rest with a clear error."""

import io
import os
import random
import re
import struct
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import GifImagePlugin, Image, ImageFile, ImageOps, PngImagePlugin

from tests.data.pictures import COLOUR, GREY_ALPHA, PALETTE, SIGNATURE, checkers, chunk, encode, png
from vision_remember.data.images import (
    NOTE_ANIMATION,
    NOTE_EXIF,
    ImageError,
    ImageLimits,
    decode,
    decode_image,
    read_file,
)

WHITE = (255, 255, 255)


def pixels(source, **options) -> list[tuple[int, int, int]]:
    image = decode_image(source, **options)
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


def refusal(source, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(source, **options)
    message = str(caught.value)
    assert "0x" not in message and "object at" not in message
    assert caught.value.why in message and caught.value.fix in message
    return caught.value


# I1, I14: what it is, not what it is called


def test_an_empty_file_named_jpg_is_refused_by_name(tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"")
    error = refusal(tmp_path / "page.jpg")
    assert error.code == "image.empty" and "page.jpg" in error.why


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"just some words", "text"),
        (b"\n<!DOCTYPE html><html><body>404 not found", "HTML"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"8BPS\0\1", "PSD"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FPX"),
        (b"\xd7\xcd\xc6\x9a\0\0", "WMF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (bytes(range(128, 200)), "unknown"),
        (encode(checkers(), "TIFF"), "TIFF"),
        (encode(checkers(), "PPM"), "unknown"),
        (encode(checkers(), "EPS"), "EPS"),
    ],
)
def test_other_content_is_refused_whatever_its_name(tmp_path, content, said):
    (tmp_path / "page.png").write_bytes(content)
    error = refusal(tmp_path / "page.png")
    assert error.code == "image.format" and said in error.why and "PNG or JPEG" in error.fix


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_of_the_list_is_read_by_content(tmp_path, kind):
    (tmp_path / "page.txt").write_bytes(encode(checkers(), kind))
    seen = pixels(tmp_path / "page.txt")
    assert all(abs(a - b) < 40 for a, b in zip(seen[0], (200, 0, 0), strict=True))


def test_a_picture_of_several_jpegs_gives_its_first():
    data = encode(checkers(), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 12))])
    assert data.startswith(b"\xff\xd8\xff")
    assert decode(data).image.size == (16, 12)
    assert decode(data).notes == (NOTE_ANIMATION,)


def test_a_phone_jpeg_whose_second_picture_is_broken_is_read_as_viewers_do():
    data = encode(checkers(), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 12))])
    assert decode_image(data.replace(b"\xb0\x01", b"\xb0\x09", 1)).size == (16, 12)


# I2, I3, I4: broken files


def test_a_truncated_jpeg_is_refused_even_where_pillow_was_told_to_be_tolerant(monkeypatch):
    data = encode(checkers(256, 256), "JPEG", quality=95)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "truncated" in refusal(data[: len(data) * 2 // 3]).why
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True, "the setting of others is put back"


def test_a_png_with_a_flipped_byte_is_refused():
    data = bytearray(encode(checkers(64, 64)))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert refusal(bytes(data)).code == "image.broken"


def test_a_jpeg_with_a_flipped_byte_decodes_or_is_refused_but_never_crashes():
    clean = encode(checkers(64, 64), "JPEG")
    for position in range(200, len(clean) - 2, 37):
        data = bytearray(clean)
        data[position] ^= 0x55
        try:
            assert decode_image(bytes(data)).mode == "RGB"
        except ImageError:
            pass


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_random_damage_gives_an_image_or_the_one_error(kind):
    rng = random.Random(0)
    clean = encode(checkers(24, 18), kind)
    for _ in range(40):
        data = bytearray(clean)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(4, len(data))] = rng.randrange(256)
        try:
            assert decode_image(bytes(data[: rng.randint(10, len(data))])).mode == "RGB"
        except ImageError as error:
            assert not re.search(r"0x|object at", str(error))


# I5, I6, I7, I8: size


def test_a_header_that_claims_a_huge_picture_is_refused_before_decoding():
    data = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    error = refusal(data)
    assert error.code == "image.too_many_pixels" and "10000000000" in error.why and str(4096 * 4096) in error.why


def test_what_pillow_only_warns_about_is_refused():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        error = refusal(png(9500, 9500, [b""]))
    assert error.code == "image.too_many_pixels" and "90250000" in error.why and not seen


def test_sixteen_megapixels_in_a_tiny_file_are_accepted():
    data = png(4000, 4000, [bytes(4000)] * 4000)
    assert len(data) < 20_000
    assert decode_image(data).size == (4000, 4000)


def test_one_pixel_row_more_than_the_limit_is_refused_with_both_numbers():
    limits = ImageLimits(max_pixels=100)
    assert decode_image(png(10, 10, [bytes(10)] * 10), limits=limits).size == (10, 10)
    error = refusal(png(10, 11, [bytes(10)] * 11), limits=limits)
    assert "10 x 11 = 110" in error.why and "100" in error.why


def test_encoded_bytes_beyond_the_limit_are_refused_unread(tmp_path):
    limits = ImageLimits(max_bytes=50)
    assert refusal(bytes(51), limits=limits).code == "image.too_large"
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(10**12)  # sparse: a terabyte that takes no room
    error = refusal(tmp_path / "big.png")
    assert error.code == "image.too_large" and str(10**12) in error.why


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (1, 100), (100, 1)])
def test_tiny_and_narrow_pictures_are_read(size):
    assert decode_image(encode(Image.new("RGB", size))).size == size


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (10_000, 10)])
def test_a_thread_of_a_picture_is_refused_by_its_shape(size):
    error = refusal(encode(Image.new("RGB", size)))
    assert error.code == "image.aspect" and f"{size[0]} x {size[1]}" in error.why


# I9: orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(checkers(), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    seen = decode_image(data)
    assert seen.tobytes() == expected.tobytes() and seen.size == expected.size
    again = decode_image(seen)
    assert again.tobytes() == seen.tobytes()


def test_an_opened_image_is_turned_like_its_file():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(checkers(), "JPEG", exif=exif, quality=95)
    expected = decode_image(data)
    assert expected.size == (12, 16)
    assert decode_image(Image.open(io.BytesIO(data))).tobytes() == expected.tobytes()
    assert decode_image(Image.open(io.BytesIO(data)).convert("RGB")).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_is_ignored_and_noted(exif):
    data = encode(checkers(), "JPEG", exif=exif)
    decoded = decode(data)
    assert decoded.image.size == (16, 12)
    assert decoded.notes == (NOTE_EXIF,)


def test_an_orientation_that_does_not_exist_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode_image(encode(checkers(), "PNG", exif=exif)).tobytes() == checkers().tobytes()


# I10: transparency


def test_transparent_pixels_are_laid_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)])
    expected = [WHITE, (255, 0, 0), (127, 127, 127)]
    assert pixels(encode(image)) == expected
    assert pixels(encode(image, "WEBP", lossless=True, exact=True)) == expected


def test_grey_with_alpha_is_laid_on_white():
    assert pixels(png(2, 1, [bytes([9, 0, 9, 255])], colour=GREY_ALPHA)) == [WHITE, (9, 9, 9)]


def test_palette_with_alpha_in_memory_is_laid_on_white():
    image = Image.new("PA", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), (0, 0))
    image.putpixel((1, 0), (1, 255))
    assert pixels(image) == [WHITE, (0, 0, 255)]


def test_premultiplied_alpha_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((0, 0), (200, 0, 0, 0))
    assert pixels(image.convert("RGBa")) == [WHITE, (200, 0, 0)]


def test_a_transparent_palette_entry_is_laid_on_white():
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255])) + chunk(b"tRNS", bytes([0, 128]))
    assert pixels(png(2, 1, [bytes([0, 1])], colour=PALETTE, extra=palette)) == [WHITE, (127, 127, 255)]


@pytest.mark.parametrize(
    ("depth", "row", "key"), [(8, bytes([77, 78]), 77), (4, b"\x78", 7), (2, b"\x60", 1), (1, b"\x40", 0)]
)
def test_a_transparent_grey_is_laid_on_white_at_every_bit_depth(depth, row, key):
    plain = pixels(png(2, 1, [row], depth=depth))
    keyed = pixels(png(2, 1, [row], depth=depth, extra=chunk(b"tRNS", struct.pack(">H", key))))
    assert plain[0] != WHITE and keyed == [WHITE, plain[1]]


def test_a_transparent_colour_is_laid_on_white():
    row = bytes([10, 20, 30, 10, 20, 31])
    extra = chunk(b"tRNS", struct.pack(">3H", 10, 20, 30))
    assert pixels(png(2, 1, [row], colour=COLOUR, extra=extra)) == [WHITE, (10, 20, 31)]


def test_a_transparent_gif_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, "GIF", transparency=0)) == [WHITE, (0, 0, 255)]


# I11, I12: depth and modes


def test_sixteen_bit_grey_is_scaled_by_257_and_never_clipped():
    values = [0, 128, 129, 1000, 32768, 65535]
    data = png(len(values), 1, [struct.pack(f">{len(values)}H", *values)], depth=16)
    expected = [round(value / 257) for value in values]
    assert [red for red, _, _ in pixels(data)] == expected
    for mode, order in (("I;16", "<"), ("I;16B", ">")):
        image = Image.frombytes(mode, (len(values), 1), struct.pack(f"{order}{len(values)}H", *values))
        assert [red for red, _, _ in pixels(image)] == expected


def test_sixteen_bit_colour_keeps_its_brightness():
    values = [1000, 32768, 65535]
    seen = pixels(png(1, 1, [struct.pack(">3H", *values)], depth=16, colour=COLOUR))[0]
    assert all(abs(channel - value / 257) <= 1 for channel, value in zip(seen, values, strict=True))


@pytest.mark.parametrize(("colour", "key"), [(0, (1000,)), (COLOUR, (1000, 1000, 1000))])
def test_sixteen_bits_with_a_transparent_colour_are_refused(colour, key):
    row = struct.pack(f">{len(key)}H", *key)
    extra = chunk(b"tRNS", row)
    assert refusal(png(1, 1, [row], depth=16, colour=colour, extra=extra)).code == "image.mode"


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
    ],
)
def test_every_mode_with_a_meaning_becomes_the_right_colour(mode, value, expected):
    assert pixels(Image.new(mode, (1, 1), value)) == [expected]


@pytest.mark.parametrize("mode", ["I", "F", "LAB", "La"])
def test_modes_without_a_range_are_refused_by_name(mode):
    error = refusal(Image.new(mode, (2, 2)))
    assert error.code == "image.mode" and f"mode {mode} " in error.why


def test_an_inverted_cmyk_jpeg_is_read_as_it_looks():
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert all(abs(a - b) < 12 for a, b in zip(pixels(data)[0], (255, 0, 0), strict=True))


# I13: animations


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame_and_a_note(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert decoded.image.getpixel((4, 4)) == (200, 0, 0)
    assert decoded.notes == (NOTE_ANIMATION,)
    assert decode(encode(frames[0], kind)).notes == ()


def test_only_the_first_frame_of_a_long_animation_is_decoded(monkeypatch):
    frames = [Image.new("P", (8, 8), number % 2) for number in range(20)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    visited = []
    seek = GifImagePlugin.GifImageFile._seek
    monkeypatch.setattr(
        GifImagePlugin.GifImageFile,
        "_seek",
        lambda self, frame, *rest: (visited.append(frame), seek(self, frame, *rest))[1],
    )
    decode_image(data)
    assert max(visited) <= 1


# Arrays, as readers of videos return their frames


@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor])
def test_arrays_are_read_as_the_picture_they_hold(of):
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    assert np.array_equal(decode_image(of(colours)), colours)
    assert np.array_equal(decode_image(of(colours)[:, ::2]), colours[:, ::2])
    assert np.array_equal(decode_image(of(colours)[..., 0]), colours[..., [0, 0, 0]])


def test_the_pixels_of_an_array_are_copied():
    colours = np.zeros((2, 2, 3), np.uint8)
    image = decode_image(colours)
    colours += 200
    assert image.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32[4, 4, 3]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "uint8[2, 4, 4, 3]"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), "uint8[3, 4, 5]"),
        (np.zeros((0, 4, 3), np.uint8), "uint8[0, 4, 3]"),
        (np.uint8(0), "uint8[]"),
    ],
)
def test_other_arrays_are_refused_by_type_and_shape(array, named):
    error = refusal(array)
    assert (error.code, error.why) == ("image.array", f"an array {named} is no image")
    assert error.fix == "give uint8[height, width, 3] or uint8[height, width]"


def test_an_array_has_the_limits_of_a_file():
    small = ImageLimits(max_pixels=20, max_aspect=4)
    assert refusal(np.zeros((3, 7, 3), np.uint8), limits=small).code == "image.too_many_pixels"
    assert "7 x 1 px" in refusal(np.zeros((1, 7), np.uint8), limits=small).why


@pytest.mark.parametrize("source", [None, 5, [[0, 1]], {}, bytearray(b"x")])
def test_what_is_no_image_is_refused_by_its_type(source):
    error = refusal(source)
    assert error.code == "image.type" and type(source).__name__ in error.why


# I15: metadata


def test_a_giant_text_chunk_is_the_one_error_and_quotes_nothing():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "secret" * 400_000, zip=True)
    assert "secret" not in str(refusal(encode(checkers(), pnginfo=info)))


def test_metadata_does_not_survive_decoding():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "secret")
    image = decode_image(encode(checkers(), pnginfo=info, icc_profile=b"x" * 200_000))
    assert image.info == {} and not image.getexif()


# D3: what is not a file, through the same door


def test_pipes_folders_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", "/dev/zero"):
        assert refusal(path).code == "image.not_a_file"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert refusal(tmp_path / "loop.png").code == "image.unreadable"
    assert refusal(tmp_path / "absent.png").code == "image.missing"
    assert refusal("nul\0byte.png").code == "image.unreadable"
    assert "\n" not in str(refusal(tmp_path / "two\nlines.png"))


def test_reading_leaves_no_descriptor_open(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(checkers()))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_file(tmp_path / "a.png", max_bytes=10**6)
        refusal(tmp_path)
        decode_image(tmp_path / "a.png")
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_decode_side_by_side_and_keep_their_warnings():
    data, huge, failures = encode(checkers()), png(9500, 9500, [b""]), []

    def work():
        for _ in range(5):
            try:
                decode_image(data)
                refusal(huge)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
