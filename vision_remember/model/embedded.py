"""Names of models: `embedded/NAME` stands for a folder inside the package wherever a folder or hub id is taken."""

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


def public_name(name: str) -> str:
    """What others are told of where a model came from: a hub id or `embedded/NAME` as it is, a folder by its last name only."""
    if Path(name).is_absolute() and Path(name).parent == EMBEDDED:
        return PREFIX + Path(name).name
    return name if is_on_the_hub(name) or name.startswith(PREFIX) else Path(name).name


def is_on_the_hub(name: str) -> bool:
    """Whether a name is a hub id, as far as its form and the folders here can tell."""
    return name.count("/") == 1 and not name.startswith((PREFIX, "/", ".", "~")) and not Path(name).exists()
