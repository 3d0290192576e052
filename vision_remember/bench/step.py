"""What a training step of a recipe takes: time, and memory beside the estimate of a dry run.

The model is built from its configs with random weights and trained on rows of random tokens that are all as long as `data.max_length`, with
one image each, the largest that the model takes: the longest step that the recipe can meet, on one device. No data, no weights and no
network are needed.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_remember.model import VisionRememberForConditionalGeneration
from vision_remember.model.clock import now
from vision_remember.model.flops import prompt_ids
from vision_remember.training.distributed import share
from vision_remember.training.dry_run import dry_run, gib, shapes_of
from vision_remember.training.optimizer import build_optimizer
from vision_remember.training.recipe import Recipe
from vision_remember.training.start import freeze

WARM_UP = 1


def measure(recipe: Recipe, *, beside: Path, rounds: int) -> dict[str, Any]:
    """Trains micro-batches of a recipe, an optimizer step after each, on the first GPU if there is one, else on the CPU.

    Args:
        recipe: as a dry run takes it; neither its data nor its start model need be there.
        beside: folder of the recipe, whose `configs/` may hold those of the backbones.
        rounds: measured ones, after 1 that is thrown away.

    Returns:
        What JSON can hold: seconds of each micro-batch and of each optimizer step, and bytes that were allocated and reserved at most, None
        on a CPU, beside the bytes that were estimated.

    Raises:
        ValueError: as `dry_run`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = dry_run(recipe, beside=beside)
    shapes, _ = shapes_of(recipe.model, beside)
    training = recipe.training
    torch.manual_seed(recipe.seed)
    with device:
        model = VisionRememberForConditionalGeneration(shapes.config)
    model.to(device).train()
    freeze(model, training)
    if training.activation_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = build_optimizer(model, model.parts(), training)
    rows, _ = share(training, 1)
    inputs = _inputs(model, rows, recipe.data.max_length)
    seconds: list[tuple[float, float]] = []
    for _ in range(WARM_UP + rounds):
        begin = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        middle = now(device)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((middle - begin, now(device) - middle))
    is_gpu = device.type == "cuda"
    return {
        "recipe": recipe.name,
        "device": torch.cuda.get_device_name() if is_gpu else "CPU",
        "precision": training.precision,
        "rows": rows,
        "tokens": rows * recipe.data.max_length,
        "accumulation": found["accumulation"],
        "micro_batch_seconds": [micro for micro, _ in seconds[WARM_UP:]],
        "optimizer_seconds": [step for _, step in seconds[WARM_UP:]],
        "allocated": torch.cuda.max_memory_allocated() if is_gpu else None,
        "reserved": torch.cuda.max_memory_reserved() if is_gpu else None,
        "estimated": found["memory"],
    }


def text_lines(found: dict[str, Any]) -> list[str]:
    """What :func:`measure` found, for people."""
    micro, step = (_mean(found[name]) for name in ("micro_batch_seconds", "optimizer_seconds"))
    whole = found["accumulation"] * micro + step
    estimate = found["estimated"]
    lines = [
        f"{found['recipe']} on {found['device']} in {found['precision']}: {found['rows']} rows, {found['tokens']:,} tokens a micro-batch",
        f"micro-batch {micro:.3f} s ({found['tokens'] / micro:,.0f} tokens/s), optimizer {step:.3f} s; "
        f"a step, {found['accumulation']} x the first and the second, {whole:.1f} s",
        f"GPU memory, estimated   {gib(estimate['total'])}, of which for CUDA itself {gib(estimate['runtime'])}",
    ]
    if found["allocated"] is not None:
        lines.append(f"GPU memory, measured    {gib(found['allocated'])} allocated, {gib(found['reserved'])} reserved")
    return lines


def _inputs(model: VisionRememberForConditionalGeneration, rows: int, length: int) -> dict[str, Tensor]:
    config, tiling = model.config, model.config.tiling
    num_tokens = tiling.layout(tiling.largest).num_tokens
    generator = torch.Generator().manual_seed(0)
    ids = prompt_ids(config, length - num_tokens, num_tokens)
    ids = torch.where(ids == 0, torch.randint(1, config.image_token_id - 2, ids.shape, generator=generator), ids)
    ids = ids.expand(rows, -1).to(model.device)
    pixels = torch.randn(rows, *config.pixel_shape, generator=generator).to(model.device)
    sizes = {"image_sizes": torch.tensor([tiling.largest] * rows)} if tiling.is_anyres else {}
    return {
        **sizes,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "labels": ids.masked_fill(ids == config.image_token_id, -100),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
