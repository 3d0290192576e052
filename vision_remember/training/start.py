"""The model a run starts from, and which of its parameters learn."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vision_remember import plugins
from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.embedded import model_path
from vision_remember.tiling import Resolution
from vision_remember.training.recipe import ModelSection, Recipe, TrainingSection


def build_model(recipe: Recipe) -> tuple[VisionRememberForConditionalGeneration, VisionRememberProcessor]:
    """Loads the start model of a recipe, or joins its two backbones. A start model without re-fusion gets the recipe's, fresh.

    Raises:
        ValueError: the start model has another projector or re-fusion than the recipe (both are named), or attention cannot be computed
            as it says.
    """
    model, processor = _load(recipe)
    if recipe.model.attn_implementation is not None:
        try:
            model.set_attn_implementation(recipe.model.attn_implementation)
        except (ImportError, ValueError) as error:
            raise ValueError(f"model.attn_implementation {recipe.model.attn_implementation}: {error}") from error
    return model, processor


def _load(recipe: Recipe) -> tuple[VisionRememberForConditionalGeneration, VisionRememberProcessor]:
    """As transformers computes attention by itself."""
    section = recipe.model
    if section.start is not None:
        config = VisionRememberConfig.from_pretrained(section.start)
        _must_agree(section, config)
        model = VisionRememberForConditionalGeneration.from_pretrained(section.start, dtype=torch.float32)
        if config.refusion["type"] != section.refusion["type"]:
            model = _with_refusion(model, section.refusion, recipe.seed)
        return model, VisionRememberProcessor.from_pretrained(section.start)
    vision, text = model_path(str(section.vision)), model_path(str(section.text))
    model = VisionRememberForConditionalGeneration.from_backbones(
        vision,
        text,
        projector=section.projector,
        refusion=section.refusion,
        resolution=section.resolution,
        seed=recipe.seed,
    )
    if section.projector_weights is not None:
        _load_projector(model, model_path(section.projector_weights))
    return model, VisionRememberProcessor.from_backbones(vision, text, model.config)


def _with_refusion(
    model: VisionRememberForConditionalGeneration, refusion: dict[str, Any], seed: int
) -> VisionRememberForConditionalGeneration:
    """The same model with a fresh re-fusion method between its layers."""
    values = {**model.config.to_dict(), "refusion": refusion}
    torch.manual_seed(seed)
    fresh = VisionRememberForConditionalGeneration(VisionRememberConfig(**values))
    added = {name for name, _ in fresh.parts()["refusion"]}
    missing, unexpected = fresh.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and set(missing) <= added, (missing, unexpected)
    fresh.generation_config = model.generation_config
    return fresh


def _load_projector(model: VisionRememberForConditionalGeneration, folder: str) -> None:
    try:
        model.model.multi_modal_projector.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model.projector_weights {folder} does not fit this projector: {error}") from error


@torch.no_grad()
def check_rates(model: VisionRememberForConditionalGeneration, rates: Iterable[int]) -> None:
    """Makes an image's vision tokens and memory at every rate of an elastic run, before the first step needs them.

    Raises:
        ValueError: projector or re-fusion cannot make that number of tokens.
    """
    config = model.config
    shape = (len(model.encoder_level_indices), *config.pixel_shape[:-3], config.patch_grid.num_cells)
    for rate in rates:
        levels = torch.zeros(1, *shape, config.vision_config.hidden_size)
        try:
            model.get_image_features(encoder_levels=levels, tokens_per_image=rate)
        except ValueError as error:
            raise ValueError(f"training.tokens_per_image names {rate}: {error}") from None


def freeze(model: VisionRememberForConditionalGeneration, training: TrainingSection) -> dict[str, dict[str, int]]:
    """Lets the named parts learn and freezes everything else.

    Returns:
        Number of parameters by part, `{"projector": {"total": 8, "trainable": 8}}`.

    Raises:
        ValueError: a name in `frozen` matches no parameter that would learn, or a part to train has no parameters.
    """
    parts = model.parts()
    learning = {name: parameter for part in training.trainable for name, parameter in parts[part]}
    for part in training.trainable:
        if not parts[part] and part != "refusion":  # a method without parameters, such as none, has nothing to train
            raise ValueError(f"training.trainable names {part}, which has no parameters in this model; leave it out")
    for name in training.frozen:
        matches = [known for known in learning if known == name or known.startswith(f"{name}.")]
        if not matches:
            close = difflib.get_close_matches(name, _modules(learning), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"training.frozen names {name!r}, which matches no parameter that learns{hint}")
        for match in matches:
            del learning[match]
    if not learning:
        raise ValueError(f"nothing is left to train: training.trainable is {', '.join(training.trainable)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    return {
        part: {"total": _count(p for _, p in members), "trainable": _count(p for n, p in members if n in learning)}
        for part, members in parts.items()
    }


def _must_agree(section: ModelSection, config: VisionRememberConfig) -> None:
    for room in ("projector", "refusion"):
        wanted, found = getattr(section, room), getattr(config, room)
        if room == "refusion" and found == {"type": "none"}:
            continue  # it is added
        differ = f"model.checkpoint {section.checkpoint} has {room} {found}, the recipe says"
        try:
            complete = getattr(VisionRememberConfig(**{**config.to_dict(), room: wanted}), room)
        except ValueError as error:
            raise ValueError(f"{differ} {wanted}; make them agree") from error
        if complete != found:
            raise ValueError(f"{differ} {complete}; make them agree")
    if section.resolution is not None and _resolution(section.resolution) != _resolution(config.resolution):
        raise ValueError(
            f"model.checkpoint {section.checkpoint} has resolution {config.resolution}, the recipe says {section.resolution}; leave it out"
        )


def _resolution(options: dict[str, Any]) -> Resolution:
    return plugins.strict_config(Resolution, options, where="resolution")


def _modules(names: Iterable[str]) -> list[str]:
    found: set[str] = set()
    for name in names:
        steps = name.split(".")
        found.update(".".join(steps[: i + 1]) for i in range(len(steps)))
    return sorted(found)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
