"""The one loop that pretrains the embedded encoder and language model: AdamW or Muon, warm-up and cosine, resumable.

A batch is a function of its step, so a resumed run sees what the uninterrupted one would have seen and ends with the same weights.
State is safetensors and JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # what AdamW and Muon keep of a parameter


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    `learning_rate` is the peak, reached after `warmup` steps and left on a half cosine that ends at a twentieth of it. With `muon_rate`,
    Muon trains the matrices of the transformer's layers, with this peak, and AdamW the rest. A run whose rate `falls_until` a later step
    ends before it has fallen, for another one to go on.
    """

    steps: int
    falls_until: int | None = None
    learning_rate: float
    muon_rate: float | None = None
    warmup: int = 100
    weight_decay: float = 0.01
    save_every: int = 100

    def share(self, step: int) -> float:
        """Of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, (self.falls_until or self.steps) - self.warmup)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW for everything, or Muon and AdamW."""
        decay, named = self.weight_decay, dict(model.named_parameters())
        layers = {name for name, parameter in named.items() if parameter.ndim == 2 and ".layers." in name}
        muon = [named.pop(name) for name in sorted(layers)] if self.muon_rate else []
        adamw = torch.optim.AdamW(named.values(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=decay)
        return [adamw, torch.optim.Muon(muon, lr=self.muon_rate or 0.0, weight_decay=decay)] if muon else [adamw]


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
    optimizers = schedule.optimizers(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    start = _resume(model, optimizers, folder)
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
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * schedule.share(step)
            value, figures = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            figures = {"step": step, "loss": value.item(), **figures}
            metrics.write(json.dumps({key: round(number, 5) for key, number in figures.items()}) + "\n")
            metrics.flush()
            progress.update(bar, advance=1, note=f"loss {value.item():.3f}")
            if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
                _save(model, optimizers, folder, step + 1)


def _save(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], folder: Path, step: int) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:  # one of them has the parameter; one that no loss reaches has no state
            tensors |= {f"{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    fresh = folder / "state.tmp"
    save_file(tensors, fresh, metadata={"step": json.dumps(step)})
    os.replace(fresh, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}))


def _resume(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], folder: Path) -> int:
    if not (folder / "state.safetensors").exists():
        return 0
    tensors = load_file(folder / "state.safetensors")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model.{name}"])
        kept = {key: tensors[f"{key}.{name}"] for key in STATE if f"{key}.{name}" in tensors}
        for optimizer in optimizers:
            if kept and any(parameter is one for group in optimizer.param_groups for one in group["params"]):
                optimizer.state[parameter] = kept
    return json.loads((folder / "state.json").read_text())["step"]
