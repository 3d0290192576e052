"""Everything wrong with a data set in one pass: every record parsed, every image decoded, every cure named.

A file that names its images' checksums (`SHA256SUMS`, as `sha256sum` writes it) in the data folder is verified too: it is the only way to
see a JPEG whose bytes were flipped, because that decodes without complaint.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vision_remember.data.files import resolve_under
from vision_remember.data.images import DEFAULT_LIMITS, ImageError, read_file
from vision_remember.data.schema import DataError, ImageFile, Problem, Sample, SampleSequence
from vision_remember.data.sources import load_samples

CHECKSUMS = "SHA256SUMS"
_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_NUM_NAMED = 5  # examples in a message that counts


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        num_samples: Records in the data set, good and bad.
        problems: What makes a sample unusable; none means that training will not stumble over the data.
        warnings: What is usable and probably not meant.
        notes: How often an image was read in a special way, such as the first frame of an animation.
    """

    num_samples: int
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    notes: dict[str, int]


def check_folder(path: str | Path, *, images: str | Path | None = None) -> list[Problem]:
    """All problems of a data set; see `inspect_folder`."""
    return list(inspect_folder(path, images=images).problems)


def inspect_folder(path: str | Path, *, images: str | Path | None = None) -> Report:
    """Reads every sample of a data set and decodes every image; nothing stops it before the end.

    Args:
        path: Folder or file, as for `load_samples`.
        images: Folder that image names are relative to.
    """
    path = Path(path)
    try:
        samples = load_samples(path, images=images)
    except DataError as error:
        return Report(num_samples=0, problems=error.problems, warnings=(), notes={})
    problems: list[Problem] = []
    notes: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    sound: set[ImageFile] = set()
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except DataError as error:
            problems += error.problems
            continue
        ids[sample.id] += 1
        problems += _image_problems(sample, sound, notes)
    problems += _checksum_problems(path if path.is_dir() else path.parent)
    return Report(
        num_samples=len(samples), problems=tuple(problems), warnings=tuple(_repeated(path, ids)), notes=dict(notes)
    )


def find_leaks(train: SampleSequence, test: SampleSequence) -> list[Problem]:
    """Images that stand in both of two data sets, by their pixels; one problem for each sample of `test` that has one.

    Raises:
        DataError: A sample of either cannot be used; check both first.
    """
    seen = {pixels: sample.where for sample in _each(train) for pixels in _pixels(sample)}
    return [
        sample.problem("images.leak", f"its image is also in {seen[pixels]}", "remove it from one of the two")
        for sample in _each(test)
        for pixels in _pixels(sample)
        if pixels in seen
    ]


def _image_problems(sample: Sample, sound: set[ImageFile], notes: Counter[str]) -> Iterator[Problem]:
    for index, reference in enumerate(sample.images):
        if isinstance(reference, ImageFile) and reference in sound:
            continue
        try:
            notes.update(sample.read_image(index).notes)
        except DataError as error:
            yield from error.problems
        else:
            if isinstance(reference, ImageFile):
                sound.add(reference)


def _repeated(path: Path, ids: Counter[str]) -> Iterator[Problem]:
    repeated = [f"{ascii(sample_id)} ({count})" for sample_id, count in ids.most_common() if count > 1]
    if repeated:
        named = ", ".join(repeated[:_NUM_NAMED]) + (", .." if len(repeated) > _NUM_NAMED else "")
        why = f"{len(repeated)} ids stand more than once: {named}"
        yield Problem(code="ids.repeated", where=path.name, why=why, fix="give every sample its own id")


def _checksum_problems(folder: Path) -> Iterator[Problem]:
    listing = folder / CHECKSUMS
    if not listing.is_file():
        return
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{CHECKSUMS}#{number}"
        entry = _CHECKSUM_LINE.fullmatch(line)
        if entry is None:
            yield Problem(
                code="checksum.line", where=where, why="not `<sha256>  <name>`", fix="write it with sha256sum"
            )
            continue
        try:
            data = read_file(resolve_under(str(folder), entry[2]), max_bytes=DEFAULT_LIMITS.max_bytes)
        except ImageError as error:
            yield Problem(code=error.code, where=where, why=f"{ascii(entry[2])}: {error.why}", fix=error.fix)
            continue
        if hashlib.sha256(data).hexdigest() != entry[1]:
            why = f"{ascii(entry[2])} is not the file that was listed"
            yield Problem(code="checksum.mismatch", where=where, why=why, fix="copy the file again")


def _each(samples: SampleSequence) -> Iterator[Sample]:
    return (samples[index] for index in range(len(samples)))


def _pixels(sample: Sample) -> list[str]:
    return [hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest() for image in sample.load_images()]
