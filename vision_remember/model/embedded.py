"""Models that travel inside the package: `embedded/NAME` stands for their folder wherever a folder or hub id is taken."""

from pathlib import Path

EMBEDDED = Path(__file__).resolve().parents[1] / "foundation" / "weights"
PREFIX = "embedded/"


def model_path(name: str | Path) -> str:
    """The folder or hub id that a name means.

    Args:
        name: A folder, a hub id, or `embedded/NAME`.

    Raises:
        ValueError: The package holds no model of that name; lists those it holds.
    """
    if not str(name).startswith(PREFIX):
        return str(name)
    folder = EMBEDDED / str(name).removeprefix(PREFIX)
    if not folder.is_dir():
        known = sorted(f"{PREFIX}{path.name}" for path in EMBEDDED.iterdir()) if EMBEDDED.is_dir() else []
        raise ValueError(f"{name} is not in the package; it has {', '.join(known) or 'no model'}")
    return str(folder)
