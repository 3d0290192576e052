"""`vision-remember analyse`: models in, a folder of figures with their numbers and a report out."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision_remember.analysis import figures
from vision_remember.analysis.measurement import Measurement, ahead, measure, without_refusion
from vision_remember.analysis.page_looks import page_looks
from vision_remember.analysis.recording import AS_IT_IS
from vision_remember.analysis.report import ShownPage, render_report
from vision_remember.analysis.sheets import SPLIT, Sheet, image_sheets, rendered_sheets
from vision_remember.evaluation.bootstrap import Interval
from vision_remember.evaluation.records import write_text
from vision_remember.evaluation.runner import versions
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Engine, Request

COUNT = 1000
QUESTION = "What is written on this page?"
NUM_SHOWN = 4  # sheets drawn of every model: the first ones, of rendered pages one a family
FEWEST_PAGES = 16


def analyse(
    models: Sequence[str],
    out: Path,
    *,
    images: Path | None = None,
    count: int | None = None,
    question: str | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Looks inside models and writes what it finds.

    The states of all pages are kept in memory, twice for a model with a memory: pages x V x D x (layers + 1) numbers. Lower `count` for
    large models.

    Args:
        models: Folders, hub ids or `embedded/NAME`, all of them shown the same pages.
        out: Folder for the figures (PNG, SVG and CSV) and `report.html`.
        images: Folder of the user's own images, in place of rendered pages; nothing is known of them, so there are no probes.
        count: Rendered pages; None: `COUNT`.
        question: Asked about every image of `images`; None: `QUESTION`. A rendered page has questions of its own.
        seed: Of the rendered pages and of the split for the probes.
        console: Where progress is shown; None shows none.

    Returns:
        The measurements in short, what was done, and the files, ready for JSON.

    Raises:
        ValueError: No model, too few pages, no images, or an option of pages for images or of images for pages.
    """
    if not models:
        raise ValueError("no model to analyse; name at least one")
    names = labels(models)
    sheets, source = _sheets(images, count, question, seed)
    out.mkdir(parents=True, exist_ok=True)
    measurements, pages = [], []
    for name, label in zip(models, names, strict=True):
        engine = Engine.load(name)
        measurements.append(_measured(engine, sheets, label, seed, console))
        pages += _shown(engine, measurements[-1], sheets[:NUM_SHOWN])
    drawn = {"attention": figures.attention(measurements), "similarity": figures.similarity(measurements)}
    if images is None:
        drawn["characters"] = figures.characters(measurements)
    about = {
        "sheets": len(sheets),
        "source": source,
        "command": _command(models, out, images, count, question, seed),
        "versions": versions(),
    }
    files = [file for one in (*drawn.values(), *(page.drawn for page in pages)) for file in one.save(out)]
    write_text(out / "report.html", render_report(measurements, drawn, pages, about))
    return {
        "models": {one.label: summary(one, measurements) for one in measurements},
        **about,
        "files": [str(out / "report.html"), *map(str, files)],
    }


def labels(models: Sequence[str]) -> list[str]:
    """Short names for models: the parts of their paths that tell them apart, without a run's `model` and the folders that all end in.

    `runs/a/none/seed-0/model` and `runs/a/remember/seed-0/model` become `none` and `remember`.

    Raises:
        ValueError: Two names are the same.
    """
    parts = [PurePath(name).parts for name in models]
    parts = [part[:-1] if len(part) > 1 and part[-1] == "model" else part for part in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len({_file_name(end) for end in ends}) == len(ends):
            return ends
    raise ValueError(f"the names {', '.join(models)} cannot be told apart; name each model once")


def summary(one: Measurement, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The first and last numbers of a measurement, ready for JSON, and how far it is ahead of the same without re-fusion."""
    found = one.characters
    short: dict[str, Any] = {
        "refusion": one.refusion,
        "tokens": one.token_grid.num_cells,
        "patches_per_token": one.compression,
        "density": {name: [value.value for value in curve] for name, curve in one.density.items()},
    }
    if found is not None:
        short["characters"] = {
            "encoder": found.encoder.value,
            "chance": found.chance.value,
            "read": {name: [value.value for value in curve] for name, curve in found.read.items()},
        }
        plain = without_refusion(one, measurements)
        if plain is not None and (more := ahead(one, plain)):
            short["characters"]["ahead"] = {"of": plain.label, **_value(more[-1])}
        if found.muting is not None:
            short["characters"]["muting_costs"] = _value(found.muting[-1])
    return short


def text_lines(content: dict[str, Any]) -> list[str]:
    """What a terminal shows of the result of `analyse`."""
    lines = []
    for label, one in content["models"].items():
        density = one["density"][AS_IT_IS]
        words = f"{label}: {one['tokens']} tokens, attention density {sum(density) / len(density):.2f}"
        if found := one.get("characters"):
            read = found["read"][AS_IT_IS]
            words += f"; probes read {100 * found['encoder']:.1f} % of the characters off the encoder, "
            words += f"{100 * read[0]:.1f} % off the tokens, {100 * read[-1]:.1f} % at the end"
            if more := found.get("ahead"):
                low, high = (100 * end for end in more["ci95"])
                words += f" ({100 * more['value']:+.1f} [{low:+.1f}, {high:+.1f}] points against {more['of']})"
        lines.append(words)
    return [*lines, content["files"][0]]


def _sheets(images: Path | None, count: int | None, question: str | None, seed: int) -> tuple[list[Sheet], str]:
    """What is shown, and in words."""
    if images is not None:
        if count is not None:
            raise ValueError(
                f"count={count} is for rendered pages, and every image of {images} is read; drop one of them"
            )
        asked = question or QUESTION
        sheets = image_sheets(images, asked)
        return sheets, f"{len(sheets)} images of {images}, asked: {asked}"
    if question is not None:
        raise ValueError("a rendered page has questions of its own; give a question with images only")
    count = COUNT if count is None else count
    if count < FEWEST_PAGES:
        raise ValueError(f"{count} pages are too few to fit and score probes on; render at least {FEWEST_PAGES}")
    words = f"{count} rendered pages of text, tables, charts and forms, split {SPLIT}, seed {seed}, each with its first question"
    return rendered_sheets(count, seed), words


def _measured(engine: Engine, sheets: Sequence[Sheet], label: str, seed: int, console: Console | None) -> Measurement:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task(f"looking inside {label}", total=len(sheets))
        return measure(engine, sheets, label, seed=seed, progress=lambda done: progress.advance(bar, done))


def _shown(engine: Engine, one: Measurement, sheets: Sequence[Sheet]) -> list[ShownPage]:
    if not one.looks:
        return []
    requests = [Request(first_question(sheet.question, num_images=1), [sheet.image]) for sheet in sheets]
    answers = engine.answer(requests)
    pages = []
    for index, (sheet, answer) in enumerate(zip(sheets, answers, strict=True)):
        [canvas] = engine.processor.canvases([sheet.image])
        drawn = page_looks(one, sheet, index, canvas, f"looks_{_file_name(one.label)}_{index + 1}")
        pages.append(ShownPage(label=one.label, sheet=sheet, said=answer.text, drawn=drawn))
    return pages


def _value(value: Interval) -> dict[str, Any]:
    return {"value": value.value, "ci95": [value.low, value.high]}


def _file_name(label: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "_", label.lower())


def _command(
    models: Sequence[str], out: Path, images: Path | None, count: int | None, question: str | None, seed: int
) -> str:
    given = {"--out": out, "--images": images, "--count": count, "--question": question, "--seed": seed}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return shlex.join(["vision-remember", "analyse", *models, *options])
