"""The folder of one row and seed, and how an interrupted comparison goes on in it.

row.json             what this row is: its recipe, its questions and the bytes of the models it starts from; written first
training/            the run folder of the trainer, which resumes by itself
answers-SPLIT.jsonl  every answer
finished.json        what training left behind; written last, so a row is finished if and only if this file is there

Of `training` a finished row needs only what is no weight in `training/model`: the rest may be deleted, and need not be copied to where the
rows of several machines become one comparison.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vision_remember.evaluation.plan import Comparison, RowPlan
from vision_remember.evaluation.records import Record, read_answers, write_answers, write_json
from vision_remember.evaluation.results import TrainedRow
from vision_remember.model.embedded import model_path
from vision_remember.model.engine import Engine
from vision_remember.training.dry_run import NotAtHand, shapes_of
from vision_remember.training.recipe import Recipe
from vision_remember.training.run_folder import HISTORY, RUN, SUMMARY, WATCHING, learning_curve

# Keys that may differ between two runs of a row: those that watch it, and which kernel computes attention, which moves roundings alone.
NOT_IDENTITY = (*WATCHING, "model.attn_implementation")


@dataclass(frozen=True, kw_only=True)
class RowFolder:
    """One row trained with one seed.

    Attributes:
        path: the folder.
        row: the plan of the row.
        seed: of its training.
        recipe: its training recipe, resolved.
        identity: flat facts that must not change between two runs of the comparison.
    """

    path: Path
    row: RowPlan
    seed: int
    recipe: Recipe
    identity: dict[str, Any]

    @classmethod
    def of(cls, comparison: Comparison, row: RowPlan, seed: int, out: Path) -> "RowFolder":
        """Resolve the recipe of a row and name its folder; reads, writes nothing."""
        recipe = comparison.recipe(row, seed)
        plan = comparison.evaluation
        identity = _flat(recipe.to_dict())
        identity |= _flat({"evaluation": {split: plan.task(split) for split in plan.splits}})
        identity |= {"evaluation.max_new_tokens": plan.max_new_tokens, **_weights(recipe)}
        if row.tokens is not None:
            identity["tokens"] = row.tokens
        identity = {key: value for key, value in identity.items() if not key.startswith(NOT_IDENTITY)}
        return cls(
            path=out / "rows" / row.folder / f"seed-{seed}", row=row, seed=seed, recipe=recipe, identity=identity
        )

    @property
    def training(self) -> Path:
        """The trainer's run folder, which rows of one model share."""
        return self.path.parents[1] / self.row.trained_folder / self.path.name / "training"

    def engine(self, *, with_weights: bool = True) -> Engine:
        """The trained model, ready to answer at the row's number of tokens; without weights one that costs as much."""
        path = str(self.training / "model")
        return Engine.load(path, tokens_per_image=self.row.tokens, with_weights=with_weights)

    @property
    def is_finished(self) -> bool:
        """Whether the row needs no more work."""
        return (self.path / "finished.json").is_file()

    def check(self) -> None:
        """Refuse to mix what the folder holds with a changed recipe.

        Raises:
            ValueError: the folder was begun with another recipe; names each key with both values.
        """
        if not (self.path / "row.json").is_file():
            return
        before = json.loads((self.path / "row.json").read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self.identity))
        keys = sorted(key for key in {*before, *now} if not key.startswith(NOT_IDENTITY))
        changed = [key for key in keys if before.get(key) != now.get(key)]
        if changed:
            listed = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed[:6])
            more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
            raise ValueError(
                f"row {self.row.name!r}, seed {self.seed}, in {self.path} was made with another recipe: {listed}{more}. "
                f"Choose another --out, or delete {self.path} to train this row again"
            )

    def check_model(self) -> None:
        """Refuse a model that cannot be, from the configs of its backbones; what is not at hand is left to the training.

        Raises:
            ValueError: names the row and says what its parts do not take.
        """
        try:
            shapes_of(self.recipe.model, Path())
        except NotAtHand:
            return
        except ValueError as error:
            raise ValueError(f"row {self.row.name!r}: {error}") from error

    def begin(self) -> None:
        """Write down what the row is, before any work."""
        write_json(self.path / "row.json", self.identity)

    def save_answers(self, split: str, records: Sequence[Record]) -> None:
        """Keep the answers of one split."""
        write_answers(self.path / f"answers-{split}.jsonl", records)

    def answers(self, split: str) -> list[Record]:
        """Return the answers of one split."""
        return read_answers(self.path / f"answers-{split}.jsonl")

    def finish(self, *, tokens: int) -> None:
        """Write the last file of the row, from what the trainer measured."""
        summary, run = (json.loads((self.training / name).read_text(encoding="utf-8")) for name in (SUMMARY, RUN))
        trained = TrainedRow(
            tokens=tokens,
            trainable_parameters=summary["trainable_parameters"],
            train_seconds=summary["train_seconds"],
            curve=learning_curve(self.training),
            device=run["device"],
        )
        write_json(self.path / "finished.json", asdict(trained))

    def trained(self) -> TrainedRow:
        """Return what training left behind, and how the model that it started from was trained."""
        left = json.loads((self.path / "finished.json").read_text(encoding="utf-8"))
        return replace(TrainedRow(**left), start=self._start())

    def _start(self) -> dict[str, Any] | None:
        start = self.recipe.model.start
        history = Path(model_path(start)) / HISTORY if start else None
        if start is None or history is None or not history.is_file():
            return None
        state = json.loads(history.read_text(encoding="utf-8"))
        logs = state["log_history"]
        return {
            "checkpoint": str(self.recipe.model.checkpoint),
            "recipe": state["recipe"],
            "seed": state["seed"],
            "steps": state["global_step"],
            "samples": state["global_step"] * state["train_batch_size"],
            "curve": {key: [log[key] for log in logs] for key in ("step", "loss")},
        }


def _weights(recipe: Recipe) -> dict[str, str]:
    """sha256 of every local model that training starts from: the same path with other weights is another recipe."""
    keys = ("checkpoint",) if recipe.model.start else ("vision", "text", "projector_weights")
    starts = {key: getattr(recipe.model, key) for key in keys}
    folders = {key: Path(model_path(name)) for key, name in starts.items() if name is not None}
    return {f"weights.{key}": _digest(folder) for key, folder in folders.items() if folder.is_dir()}


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    files = (file for file in (*folder.glob("*.safetensors"), *folder.glob("*.json")) if file.name != HISTORY)
    for file in sorted(files):
        total.update(file.name.encode())
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, child in value.items()
        for key, leaf in _flat(child, f"{prefix}.{name}" if prefix else name).items()
    }
