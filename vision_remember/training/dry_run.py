"""What a run would be, before a weight is loaded: parameters, tokens, FLOPs, memory and steps, and a refusal of what cannot fit.

The model is built from the configs of its backbones alone, on the meta device. A backbone that is a folder brings its own; for a hub id
it is `configs/ORG/NAME/config.json` beside the recipe, or what the hub's local cache holds. Nothing is fetched. An image of any
resolution is counted as one that fills the most tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vision_remember.model import VisionRememberConfig
from vision_remember.model.embedded import model_path
from vision_remember.model.flops import count_flops, prefill_flops, prompt_ids, without_weights
from vision_remember.training.distributed import share
from vision_remember.training.memory import memory_per_gpu, num_views
from vision_remember.training.recipe import ModelSection, Recipe
from vision_remember.training.start import check_rates, freeze

NUM_TEXT_TOKENS = 50  # of the prompt whose prefill is counted


class NotAtHand(ValueError):
    """A config that is on no disk here, and that a dry run would have to fetch."""


def dry_run(recipe: Recipe, *, beside: Path, num_gpus: int = 1, gpu_memory: int | None = None) -> dict[str, Any]:
    """Describes a run without starting it.

    Args:
        recipe: the run; neither its data nor its start model need be there.
        beside: folder of the recipe, whose `configs/` may hold those of the backbones.
        num_gpus: processes that share a step.
        gpu_memory: bytes that one GPU has; None asks nothing of it.

    Returns:
        What JSON can hold, all sizes in bytes.

    Raises:
        ValueError: the run does not fit (both numbers and what would), nor the largest image into a sample, a step cannot be shared, or
            a config is not at hand.
    """
    training, length = recipe.training, recipe.data.max_length
    rows, accumulation = share(training, num_gpus)
    model, origins = shapes_of(recipe.model, beside)
    config = model.config
    parameters = freeze(model, training)
    check_rates(model, training.tokens_per_image)
    tiling = config.tiling
    rates = training.tokens_per_image or (tiling.layout(tiling.largest).num_tokens,)
    if max(rates) >= length:
        raise ValueError(
            f"{recipe.name}: the largest image takes {max(rates)} vision tokens, and data.max_length is {length}, its words included: no "
            "sample with such an image can be used; raise data.max_length or choose a projector or resolution that makes fewer tokens"
        )
    samples = training.batch_size * training.accumulation

    def needed(rows: int) -> Any:
        return memory_per_gpu(config, parameters, training, rows=rows, length=length, num_gpus=num_gpus)

    memory = needed(rows)
    if gpu_memory is not None and memory.total > gpu_memory:
        fitting = next((b for b in range(rows - 1, 0, -1) if rows % b == 0 and needed(b).total <= gpu_memory), None)
        raise ValueError(_too_large(recipe, memory.total, gpu_memory, rows, fitting, needed(1).total))
    return {
        "recipe": recipe.name,
        "configs": origins,
        "parameters": parameters,
        "tokens_per_image": list(rates),
        "views_per_image": num_views(config),
        "patches_per_image": num_views(config) * config.patch_grid.num_cells,
        "prefill_flops": {str(rate): _prefill_flops(model, rate) for rate in rates},
        "text_tokens": NUM_TEXT_TOKENS,
        "gpus": num_gpus,
        "micro_batch": rows,
        "accumulation": accumulation,
        "samples_per_step": samples,
        "rates_per_step": training.rates_per_step,
        "max_tokens_per_step": samples * training.rates_per_step * length,
        "steps": training.steps,
        "samples": training.steps * samples,
        "memory": {**vars(memory), "total": memory.total},
        "gpu_memory": gpu_memory,
    }


def shapes_of(section: ModelSection, beside: Path) -> tuple[Any, dict[str, str]]:
    """The model a recipe trains, without weights, and where the config of each part of it was read.

    Of two backbones only the shapes are known: the control tokens stand at the end of the vocabulary, whose tokenizer is not read.

    Raises:
        NotAtHand: a config is not; says where it may lie.
        ValueError: the parts do not go together.
    """
    config, origins = _config(section, beside)
    model = without_weights(config)
    if "checkpoint" not in origins:
        _count_prefix(model)
    return model, origins


def _config(section: ModelSection, beside: Path) -> tuple[VisionRememberConfig, dict[str, str]]:
    start = section.start
    if start is not None and (Path(start) / "config.json").is_file():
        config = VisionRememberConfig.from_pretrained(start)
        changed = {"projector": section.projector, "refusion": section.refusion}
        resolution = section.resolution or config.resolution
        return VisionRememberConfig(**{**config.to_dict(), **changed, "resolution": resolution}), {"checkpoint": start}
    if section.vision is None or section.text is None:
        raise NotAtHand(
            f"model.checkpoint {section.checkpoint} is not there, and no backbones are named that tell its shape; name them"
        )
    (vision, vision_from), (text, text_from) = (_backbone(name, beside) for name in (section.vision, section.text))
    vision = vision.vision_config if "vision_config" in vision.sub_configs else vision
    last = text.vocab_size - 1
    config = VisionRememberConfig(
        vision_config=vision,
        text_config=text,
        projector=section.projector,
        refusion=section.refusion,
        resolution=section.resolution,
        image_token_id=last,
        turn_start_token_id=last - 1,
        turn_end_token_id=last - 2,
    )
    return config, {"vision": vision_from, "text": text_from}


def _backbone(name: str, beside: Path) -> tuple[Any, str]:
    shipped = beside / "configs" / name
    for folder in (Path(model_path(name)), shipped):
        if (folder / "config.json").is_file():
            return AutoConfig.from_pretrained(folder), str(folder)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True), f"{name}, from the local cache"
    except OSError:
        raise NotAtHand(
            f"the config of {name} is not at hand, and a dry run fetches nothing: put its config.json into {shipped}, or load it once"
        ) from None


def _count_prefix(model: Any) -> None:
    """Finds how many tokens the encoder puts before its patches, as assembling the backbones does."""
    shapes: list[int] = []
    canvas = torch.zeros(1, 3, *model.config.image_size)
    count_flops(lambda: shapes.append(model.model.vision_tower(canvas).last_hidden_state.shape[1]))
    model.config.num_prefix_tokens = shapes[0] - model.config.patch_grid.num_cells


def _prefill_flops(model: Any, rate: int) -> int:
    tiling = model.config.tiling
    told = {"image_sizes": torch.tensor([tiling.largest])} if tiling.is_anyres else {"tokens_per_image": rate}
    inputs: dict[str, Any] = {
        "input_ids": prompt_ids(model.config, NUM_TEXT_TOKENS, rate),
        "pixel_values": torch.zeros(1, *model.config.pixel_shape),
    }
    return prefill_flops(model, inputs | told)


def _too_large(recipe: Recipe, needed: int, there: int, rows: int, fitting: int | None, least: int) -> str:
    what = f"{recipe.name} needs {gib(needed)} on every GPU with micro-batches of {rows}, and {gib(there)} are there"
    if fitting is None:
        return f"{what}; a single sample still needs {gib(least)}: train fewer parts, shorten data.max_length or take a larger GPU"
    samples = recipe.training.batch_size * recipe.training.accumulation
    cure = f"training.batch_size={fitting} training.accumulation={samples // fitting}"
    return f"{what}; {cure} take the same steps in micro-batches of {fitting}"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB"
