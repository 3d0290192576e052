"""`vision-remember data`: make, look at and check data sets."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vision_remember.cli_report import Report


def data_make(out: Path, *, count: int, split: str, seed: int, families: Sequence[str] | None) -> Report:
    """Render synthetic documents into a folder."""
    from rich.progress import track

    from vision_remember.data.synthetic import SyntheticSamples, write_dataset

    samples = SyntheticSamples(count, split=split, seed=seed, families=families)
    ids = list(
        track(write_dataset(samples, out), "rendering", total=count, console=Console(stderr=True), transient=True)
    )
    data = {
        "data": str(out / "data.json"),
        "samples": len(ids),
        "split": split,
        "seed": seed,
        "families": samples.families,
    }
    return Report(text=f"{len(ids)} samples: {out / 'data.json'}", data=data)


def data_show(folder: Path, out: Path | None) -> Report:
    """Draw a contact sheet of a data folder."""
    from vision_remember.data.contact_sheet import write_contact_sheet

    path = write_contact_sheet(folder, out or folder / "contact_sheet.png")
    return Report(text=str(path), data={"contact_sheet": str(path)})


def data_check(folder: Path) -> Report:
    """List every bad sample of a data folder with its cure."""
    from vision_remember.data.check import inspect_folder

    found = inspect_folder(folder)
    lines = [str(problem) for problem in found.problems]
    lines += [f"warning: {problem}" for problem in found.warnings]
    lines += [f"note: {note} ({count})" for note, count in found.notes.items()]
    lines.append(f"{found.num_samples} samples, {len(found.problems)} problems, {len(found.warnings)} warnings")
    data = {
        "samples": found.num_samples,
        "problems": [problem.as_dict() for problem in found.problems],
        "warnings": [problem.as_dict() for problem in found.warnings],
        "notes": found.notes,
    }
    return Report(text="\n".join(lines), data=data, succeeded=not found.problems)
