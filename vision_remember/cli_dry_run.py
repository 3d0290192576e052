"""`vision-remember train RECIPE --dry-run`: what `training/dry_run.py` found, for people."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_remember.training import load_recipe
from vision_remember.training.dry_run import dry_run, gib

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def describe(
    recipe: Path, overrides: Sequence[str], *, gpus: int, gpu_memory: str | None
) -> tuple[list[str], dict[str, Any]]:
    """The run of a recipe: lines for people, and what they are made of.

    Args:
        recipe: its file; configs of backbones may lie beside it.
        overrides: keys of it to set.
        gpus: that share a step.
        gpu_memory: of one of them, as 80GiB; None asks nothing of it.

    Raises:
        ValueError: the recipe is wrong or cannot fit.
    """
    size = None if gpu_memory is None else read_size(gpu_memory)
    plan = load_recipe(recipe, overrides, has_files=False)
    found = dry_run(plan, beside=recipe.parent, num_gpus=gpus, gpu_memory=size)
    return text_lines(found), found


def text_lines(found: dict[str, Any]) -> list[str]:
    """One line for each figure."""
    memory, parameters = found["memory"], found["parameters"]
    total, trained = (sum(part[kind] for part in parameters.values()) for kind in ("total", "trainable"))
    micro = f"{found['micro_batch']} samples x {found['accumulation']} on each of {found['gpus']} GPU" + "s" * (
        found["gpus"] > 1
    )
    rates = f", each at {found['rates_per_step']} rates" if found["rates_per_step"] > 1 else ""
    views = f" in {found['views_per_image']} views" if found["views_per_image"] > 1 else ""
    return [
        f"{found['recipe']}: {found['steps']:,} steps of {found['samples_per_step']} samples{rates} ({micro}), {found['samples']:,} in all",
        *(f"config of {part}: {origin}" for part, origin in found["configs"].items()),
        f"{'parameters':<20}{'total':>16}{'trainable':>16}",
        *(f"  {part:<18}{count['total']:>16,}{count['trainable']:>16,}" for part, count in parameters.items()),
        f"  {'whole model':<18}{total:>16,}{trained:>16,}",
        *(
            f"{rate} vision tokens of {found['patches_per_image']} patches{views}; prefill with {found['text_tokens']} text tokens "
            f"{flops / 1e9:,.1f} GFLOP"
            for rate, flops in found["prefill_flops"].items()
        ),
        f"at most {found['max_tokens_per_step']:,} tokens a step",
        "memory per GPU, the whole model on each (estimated; every row as long as data.max_length)",
        *(f"  {name:<18}{gib(size):>16}" for name, size in memory.items()),
        *([f"  {'there are':<18}{gib(found['gpu_memory']):>16}"] if found["gpu_memory"] else []),
    ]


def read_size(text: str) -> int:
    """Bytes of a size such as 80GiB.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text)
    if match is None or not float(match[1]):
        raise ValueError(f"--gpu-memory {text}: write a size such as 80GiB")
    return round(float(match[1]) * UNITS[match[2]])
