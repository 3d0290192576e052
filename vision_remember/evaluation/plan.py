"""What a comparison compares: the rows of a YAML file, each one the same training recipe with another projector or re-fusion.

    name: demo
    instruct: instruct.yaml                     # the training recipe of every row, beside this file
    reference: uncompressed                     # the row that loses nothing, which recovery is measured against
    rows:
      - {name: uncompressed, projector: {type: mlp}, refusion: {type: none}, checkpoint: embedded/align_mlp}
      - {name: avg_pool, projector: {type: avg_pool, scale: 3}, refusion: {type: none}, checkpoint: embedded/align_avg_pool}
    evaluation: {count: 2000, splits: [test], fine: [text, table, chart, form], coarse: [layout]}
    differences: [[avg_pool + remember, avg_pool + sva]]              # pairs of rows whose difference is told with its interval
    averages: {remember: [avg_pool + remember, token_packer + remember]}    # rows whose recovery is told as one

A row is laid over the recipe by the rule of `extends`. Rows may differ in what they are, never in what they are given: an override that
touches data, order or budget is refused. One elastic model may make several rows, each at a number of vision tokens of its own:

      - {name: elastic 36, ..., overrides: {training.tokens_per_image: [36, 16, 9]}, tokens: 36}
      - {name: elastic 9, ..., overrides: {training.tokens_per_image: [36, 16, 9]}, tokens: 9, trained_as: elastic 36}
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vision_remember.training.located import read
from vision_remember.training.recipe import Recipe, load_recipe
from vision_remember.training.strict import bind, nearest, number

SAME_FOR_ALL = ("name", "seed", "output_dir", "data", "training.steps", "training.batch_size", "training.accumulation")
NAME = re.compile(r"[\w.+()-]+(?: [\w.+()-]+)*")


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """One row: a model to train.

    Attributes:
        name: as the table shows it.
        projector, refusion: `{type: ..., options}`.
        checkpoint: model folder to start from; None keeps what the recipe says.
        projector_weights: what the projector starts from where there is no checkpoint; None keeps what the recipe says.
        overrides: dotted keys of the recipe, such as `training.trainable`, for rows that differ in more than their parts.
        tokens: vision tokens of an image when questions are answered; None: as many as the projector makes by itself.
        trained_as: an earlier row of the same recipe, whose model answers once more at this row's number of tokens.
        apart: why the row is not on a par with the others, such as `it sees four times the pixels`; listed last, with this reason.
    """

    name: str
    projector: dict[str, Any]
    refusion: dict[str, Any] = field(default_factory=lambda: {"type": "none"})
    checkpoint: str | None = None
    projector_weights: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = number(None, minimum=1)
    trained_as: str | None = None
    apart: str | None = None

    @property
    def folder(self) -> str:
        """The name as a folder."""
        return self.name.replace(" ", "_")

    @property
    def trained_folder(self) -> str:
        """The folder of the row whose model this is."""
        return (self.trained_as or self.name).replace(" ", "_")

    @property
    def trained(self) -> tuple[Any, ...]:
        """What its training depends on."""
        return self.projector, self.refusion, self.checkpoint, self.projector_weights, self.overrides

    def problems(self) -> Iterable[tuple[str, str]]:
        """A name that is no folder name, and overrides that would make the comparison unfair."""
        if not NAME.fullmatch(self.name) or set(self.name) <= {"."}:
            yield "name", f"{self.name!r} must be words of letters, digits, and . + - ( ) _"
        for key in self.overrides:
            if any(
                key == shared or key.startswith(shared + ".") or shared.startswith(key + ".") for shared in SAME_FOR_ALL
            ):
                yield (
                    f"overrides.{key}",
                    "all rows share data, order and budget: change it in the instruct recipe, for every row",
                )
            if key == "model" or key.startswith("model."):
                yield f"overrides.{key}", "say it with the row's projector, refusion, checkpoint or projector_weights"


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The unseen pages that every row answers.

    Attributes:
        count: pages per split; families take turns.
        splits: the first one is what the summary speaks of.
        seed: of the pages.
        fine: families whose detail compression loses; their mean is a row's `mean`.
        coarse: families that compression should not hurt.
        questions: the most questions asked about one page; None asks all.
        batch_size: prompts per batch; does not change an answer.
        max_new_tokens: longest answer.
    """

    count: int = number(minimum=1)
    splits: tuple[Literal["train", "test", "shift"], ...] = ("test",)
    seed: int = number(0, minimum=0)
    fine: tuple[str, ...] = ("text", "table", "chart", "form")
    coarse: tuple[str, ...] = ("layout",)
    questions: int | None = number(None, minimum=1)
    batch_size: int = number(32, minimum=1)
    max_new_tokens: int = number(32, minimum=1)

    @property
    def families(self) -> tuple[str, ...]:
        """All families, fine ones first."""
        return (*self.fine, *self.coarse)

    def task(self, split: str) -> dict[str, Any]:
        """The task of one split, for `tasks.load_task`."""
        options = {"count": self.count, "split": split, "seed": self.seed, "families": list(self.families)}
        return {"type": "synthetic_documents", **options, "questions": self.questions}

    def problems(self) -> Iterable[tuple[str, str]]:
        """No fine family, one named twice, or fewer pages than families."""
        if not self.splits or not self.fine:
            yield "fine" if self.splits else "splits", "is empty: name at least one"
        if len(set(self.families)) < len(self.families):
            yield "coarse", f"a family stands twice in {', '.join(self.families)}"
        if self.count < len(self.families):
            yield "count", f"{self.count} pages cannot cover {len(self.families)} families: ask for more"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A matrix of rows, trained by one recipe and asked the same questions.

    Attributes:
        name: of the comparison.
        instruct: the training recipe of every row.
        reference: the row that loses nothing.
        rows: the models.
        evaluation: the questions.
        differences: pairs (row, other) of names.
        averages: names of re-fused rows, by what their mean recovery is called.
    """

    name: str
    instruct: str
    reference: str
    rows: tuple[RowPlan, ...]
    evaluation: EvaluationPlan
    differences: tuple[tuple[str, ...], ...] = ()
    averages: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Rows of one name, a reference that is no row or is re-fused, and names of rows that are not there."""
        folders = [row.folder for row in self.rows]
        for i, folder in enumerate(folders):
            if folder in folders[:i]:
                yield f"rows.{i}.name", f"{self.rows[i].name!r} is taken by another row"
        for i, row in enumerate(self.rows):
            earlier = {other.name: other for other in self.rows[:i] if other.trained_as is None}
            if row.trained_as is not None and row.trained_as not in earlier:
                why = f"no earlier row that is trained is called {row.trained_as!r}{nearest(row.trained_as, earlier)}"
                yield f"rows.{i}.trained_as", why
            elif row.trained_as is not None and earlier[row.trained_as].trained != row.trained:
                yield (
                    f"rows.{i}.trained_as",
                    f"{row.trained_as!r} is not trained as this row would be",
                )
        on_par = [i for i, row in enumerate(self.rows) if row.apart is None]
        for i, row in enumerate(self.rows[: max(on_par, default=0)]):
            if row.apart is not None:
                yield f"rows.{i}.apart", "rows that stand apart come after all others"
        by_name = {row.name: row for row in self.rows}
        if self.reference not in by_name:
            yield "reference", f"no row is called {self.reference!r}{nearest(self.reference, by_name)}"
        elif by_name[self.reference].apart is not None:
            yield "reference", f"{self.reference!r} stands apart: the others cannot be measured against it"
        elif by_name[self.reference].refusion["type"] != "none":
            yield (
                "reference",
                f"{self.reference!r} must have the re-fusion none: recovery is measured against a plain model",
            )
        for i, pair in enumerate(self.differences):
            if len(pair) != 2:
                yield f"differences.{i}", f"needs two rows, not {len(pair)}"
            yield from (
                (f"differences.{i}", f"no row is called {name!r}{nearest(name, by_name)}")
                for name in pair
                if name not in by_name
            )
        for title, names in self.averages.items():
            for name in names:
                if name not in by_name:
                    yield f"averages.{title}", f"no row is called {name!r}{nearest(name, by_name)}"
                elif by_name[name].refusion["type"] == "none" or self.compressed_twin(by_name[name]) is None:
                    yield (
                        f"averages.{title}",
                        f"{name!r} recovers nothing: it has no re-fusion, or no row is the same without it",
                    )
            if not names:
                yield f"averages.{title}", "names no row"

    def compressed_twin(self, row: RowPlan) -> str | None:
        """Name of the row that is this one without re-fusion, or None where the comparison has none."""
        plain = (other for other in self.rows if other.refusion["type"] == "none" and other.projector == row.projector)
        twins = (other for other in plain if (other.overrides, other.tokens) == (row.overrides, row.tokens))
        return next((other.name for other in twins), None)

    def twins(self, names: Iterable[str]) -> dict[str, str]:
        """The compressed twin of every named row that has one."""
        found = {row.name: self.compressed_twin(row) for row in self.rows if row.name in set(names)}
        return {name: twin for name, twin in found.items() if twin is not None}

    def recipe(self, row: RowPlan, seed: int) -> Recipe:
        """Return the training recipe of one row and seed.

        Raises:
            RecipeError: the recipe or the row is wrong; every problem with its place.
        """
        values = {"seed": seed, "model.projector": row.projector, "model.refusion": row.refusion, **row.overrides}
        for key in ("checkpoint", "projector_weights"):
            if (start := getattr(row, key)) is not None:
                values[f"model.{key}"] = start
        return load_recipe(self.instruct, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison, what it extends, and dotted overrides; its recipe is looked for beside it, then from here.

    Raises:
        RecipeError: lists every problem with its file and line.
    """
    comparison = bind(Comparison, read(path, overrides))
    beside = Path(path).parent / comparison.instruct
    return replace(comparison, instruct=str(beside)) if beside.is_file() else comparison
