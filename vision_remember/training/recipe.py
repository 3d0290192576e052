"""A recipe: one complete training run as YAML, typed and strict.

Both stages are values of this one class. `align` trains projector and re-fusion on a frozen encoder and LM; `instruct` starts from the
model that align left behind and also trains the LM (and the encoder where the recipe says so). Paths are relative to the working
directory, `extends` to the file it stands in; `embedded/NAME` is a model that travels inside the package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from vision_remember import plugins
from vision_remember.data.synthetic import families
from vision_remember.model.embedded import model_path
from vision_remember.model.parts import PART_NAMES
from vision_remember.tiling import Resolution
from vision_remember.training.located import read
from vision_remember.training.strict import bind, nearest, number

SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """What is trained: two backbones joined anew, or the model of an earlier stage.

    Attributes:
        vision, text: folders or hub ids of the backbones.
        checkpoint: model folder to start from; its projector and re-fusion must be the ones named here. `scratch` says that training
            the LM without an align stage is meant.
        projector, refusion: `{type: ..., options}`, checked by the plug-in's own Config.
        resolution: `{mode: anyres}` and other fields of `tiling.Resolution`; none: one canvas, padded, or that of the checkpoint.
        projector_weights: folder or `embedded/NAME` whose `model.safetensors` the projector starts from, where there is no checkpoint.
        attn_implementation: how attention is computed while this trains, in transformers' words; None: as transformers chooses.
    """

    vision: str | None = None
    text: str | None = None
    checkpoint: str | None = None
    projector: dict[str, Any]
    refusion: dict[str, Any] = field(default_factory=lambda: {"type": "none"})
    projector_weights: str | None = None
    resolution: dict[str, Any] | None = None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None

    @property
    def start(self) -> str | None:
        """The model folder to start from, or None for bare backbones."""
        return None if self.checkpoint in (None, SCRATCH) else model_path(str(self.checkpoint))

    def problems(self) -> Iterable[tuple[str, str]]:
        """Missing backbones, and options the plug-ins refuse."""
        if self.checkpoint in (None, SCRATCH):
            starts = {"vision": self.vision, "text": self.text}
            if self.projector_weights is not None:
                starts["projector_weights"] = self.projector_weights
        else:
            starts = {"checkpoint": self.checkpoint}
        for key, name in starts.items():
            if name is None:
                yield key, "a model without a checkpoint needs this backbone, a folder or a hub id"
                continue
            try:
                model_path(name)
            except ValueError as error:
                yield key, str(error)
        for key, room in (("projector", "projectors"), ("refusion", "refusion")):
            options = getattr(self, key)
            try:
                plugins.build_config(room, options)
            except ValueError as error:
                named = [option for option in options if f"{option!r}" in str(error)]
                yield ".".join([key, *named[:1]]), str(error)
        try:
            plugins.strict_config(Resolution, self.resolution or {}, where="resolution")
        except ValueError as error:
            yield "resolution", str(error)

    def absences(self) -> Iterable[tuple[str, str]]:
        """A start folder without a model."""
        try:
            is_there = self.start is None or (Path(self.start) / "config.json").is_file()
        except ValueError:
            return  # `problems` says why
        if not is_there:
            yield "checkpoint", f"{self.checkpoint} holds no model; train the stage before this one first"


@dataclass(frozen=True, kw_only=True)
class SyntheticSection:
    """Pages rendered from a seed: `count` of them, from one split, over the named families (all when None).

    `questions` is the most questions kept of a page; None keeps all. `transcript` asks for the whole page first, as lines or cell by cell.
    `as_text` shows the page as characters instead of an image, so that look-up stays in practice while the projector learns.
    """

    count: int = number(minimum=1)
    split: Literal["train", "test", "shift"] = "train"
    seed: int = number(0, minimum=0)
    families: tuple[str, ...] | None = None
    questions: int | None = number(None, minimum=1)
    transcript: Literal["lines", "cells"] | None = None
    as_text: bool = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Families nobody draws."""
        known = families()
        for i, name in enumerate(self.families or ()):
            if name not in known:
                yield f"families.{i}", f"unknown family {name!r}{nearest(name, known)}"


@dataclass(frozen=True, kw_only=True)
class SourceSection:
    """One source of the mixture: files or synthetic pages, with its weight and the most samples taken from it.

    `images` is the folder that image names in the files are relative to; the folder of the file when None.
    """

    path: str | None = None
    images: str | None = None
    synthetic: SyntheticSection | None = None
    weight: float = number(1.0, above=0)
    limit: int | None = number(None, minimum=1)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Neither or both kinds of source."""
        if (self.path is None) == (self.synthetic is None):
            yield "path", "a source is either a path or synthetic, one of the two"

    def absences(self) -> Iterable[tuple[str, str]]:
        """A path that is not there."""
        if self.path is not None and not Path(self.path).exists():
            yield "path", f"{self.path} does not exist"


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The samples: a mixture of sources, what to do with a bad one, and the longest sequence in tokens."""

    sources: tuple[SourceSection, ...]
    on_bad_sample: Literal["error", "quarantine"] = "error"
    max_length: int = number(2048, minimum=1)

    def problems(self) -> Iterable[tuple[str, str]]:
        """An empty mixture."""
        if not self.sources:
            yield "sources", "is empty: name at least one source"


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How it is trained: AdamW or Muon per part, warm-up and cosine, loss per target token.

    Attributes:
        trainable: the parts that learn; every other part is frozen.
        frozen: modules or parameters inside those parts that stay frozen, by their dotted name in the model.
        learning_rates: peak rate of each part.
        muon_rates: peak rate of the parts whose hidden matrices Muon trains; everything else in them keeps its learning rate.
        steps: optimizer steps; each takes `batch_size` x `accumulation` samples, however many processes share them.
        tokens_per_image: numbers of vision tokens to train at, one of them drawn for every step, so that one model answers at any of
            them; empty: as many as the projector makes by itself.
        every_rate: take the samples of a step at each of these numbers, instead of at the one that is drawn.
        warmup_ratio: share of the steps in which the rates rise to their peak.
        cache_features: compute the frozen encoder's levels once per image, in float32 whatever the precision, and keep them in memory.
        save_every: steps between checkpoints; 0 saves only when interrupted.
        log_every: steps between two lines of progress.
    """

    trainable: tuple[Literal["encoder", "projector", "refusion", "language_model"], ...]
    frozen: tuple[str, ...] = ()
    learning_rates: dict[str, float]
    muon_rates: dict[str, float] = field(default_factory=dict)
    steps: int = number(minimum=1)
    batch_size: int = number(minimum=1)
    accumulation: int = number(1, minimum=1)
    tokens_per_image: tuple[int, ...] = ()
    every_rate: bool = False
    warmup_ratio: float = number(0.03, minimum=0, below=1)
    weight_decay: float = number(0.0, minimum=0)
    max_grad_norm: float = number(1.0, above=0)
    cache_features: bool = False
    activation_checkpointing: bool = False
    save_every: int = number(0, minimum=0)
    log_every: int = number(10, minimum=1)
    num_workers: int = number(0, minimum=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    @property
    def rates_per_step(self) -> int:
        """How many times a step takes its samples, each time at another number of vision tokens."""
        return len(self.tokens_per_image) if self.every_rate else 1

    def problems(self) -> Iterable[tuple[str, str]]:
        """Parts without a rate, rates of no part, and a cache of features that change."""
        if not self.trainable:
            yield "trainable", f"is empty: name at least one of {', '.join(PART_NAMES)}"
        for part in self.trainable:
            if part not in self.learning_rates:
                yield "learning_rates", f"{part} is trainable but has no learning rate"
        for key in ("learning_rates", "muon_rates"):
            for name, rate in getattr(self, key).items():
                if name not in PART_NAMES:
                    yield f"{key}.{name}", f"no part is called {name!r}{nearest(name, PART_NAMES)}"
                if not 0 < rate < 1:
                    yield f"{key}.{name}", f"is {rate}: it must be above 0 and below 1"
        for i, count in enumerate(self.tokens_per_image):
            if count < 1 or self.tokens_per_image.count(count) > 1:
                yield f"tokens_per_image.{i}", f"is {count}: numbers of tokens are 1 or more and named once"
        if self.every_rate and not self.tokens_per_image:
            yield "every_rate", "takes a step at all of tokens_per_image, which is empty: name the numbers"
        if self.cache_features and "encoder" in self.trainable:
            yield "cache_features", "features of an encoder that is trained cannot be cached: set false or freeze it"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. `output_dir` may be left to whoever starts it."""

    name: str
    seed: int = number(0, minimum=0)
    output_dir: str | None = None
    model: ModelSection
    data: DataSection
    training: TrainingSection

    def problems(self) -> Iterable[tuple[str, str]]:
        """The LM trained over a projector that was never aligned."""
        if "language_model" in self.training.trainable and self.model.checkpoint is None:
            why = "trains the language model, so it needs the model of an align stage; `scratch` says you mean to do without"
            yield "model.checkpoint", why

    def to_dict(self) -> dict[str, Any]:
        """The recipe as `json` and `yaml` know it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_yaml(self) -> str:
        """The resolved recipe, which `load_recipe` reads back to an equal value."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, has_files: bool = True) -> Recipe:
    """Reads a recipe, what it extends, and dotted overrides.

    Args:
        path: YAML file.
        overrides: `training.steps=100`, with YAML values.
        has_files: whether data and start model must be there.

    Raises:
        RecipeError: a ValueError that lists every problem with its file and line, before any weight is loaded.
    """
    return bind(Recipe, read(path, overrides), has_files=has_files)
