"""The one loop that pretrains the embedded encoder and language model: AdamW, warm-up and cosine, resumable.

A batch is a function of its step, so a resumed run sees what the uninterrupted one would have seen and ends with the same weights.
State is safetensors and JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    `learning_rate` is the peak, reached after `warmup` steps and left on a half cosine that ends at a twentieth of it.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    save_every: int = 100

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def fit(
    model: nn.Module,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    folder: Path,
    title: str,
) -> None:
    """Trains `model` in place.

    Args:
        model: with the parameters to train.
        loss: maps a step to (loss, figures to log); it draws its own batch from the step.
        schedule: steps and rates.
        folder: of the run: `state.safetensors` (resumed from when there), `state.json`, `metrics.jsonl`.
        title: shown beside the progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=schedule.weight_decay)
    start = _resume(model, optimizer, folder)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as progress, (folder / "metrics.jsonl").open("a") as metrics:
        bar = progress.add_task(title, total=schedule.steps, completed=start, note="")
        for step in range(start, schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            value, figures = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            figures = {"step": step, "loss": value.item(), **figures}
            metrics.write(json.dumps({key: round(number, 5) for key, number in figures.items()}) + "\n")
            metrics.flush()
            progress.update(bar, advance=1, note=f"loss {value.item():.3f}")
            if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
                _save(model, optimizer, folder, step + 1)


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, step: int) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:  # a parameter that no loss reaches has none
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{name}"] = optimizer.state[parameter][key]
    fresh = folder / "state.tmp"
    save_file(tensors, fresh, metadata={"step": json.dumps(step)})
    os.replace(fresh, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}))


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    if not (folder / "state.safetensors").exists():
        return 0
    tensors = load_file(folder / "state.safetensors")
    step = json.loads((folder / "state.json").read_text())["step"]
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model.{name}"])
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg.{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
            }
    return step
