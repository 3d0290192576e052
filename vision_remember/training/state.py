"""What a run must remember to go on as if nothing had happened: weights, moments, schedule, random generators.

Tensors go into safetensors and the rest into JSON, both keyed by parameter name. No pickle is written or read.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

WEIGHTS, MOMENTS, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"


def write_state(folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Writes weights, optimizer and schedule into `folder`."""
    save_file({name: tensor.detach().contiguous() for name, tensor in weights(model).items()}, folder / WEIGHTS)
    moments = {
        f"{name}/{key}": value.detach().contiguous()
        for name, parameter in _trained(model, optimizer).items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / MOMENTS)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    (folder / PROGRESS).write_text(json.dumps({"groups": groups, "scheduler": scheduler.state_dict()}))


def read_weights(folder: Path, model: nn.Module) -> None:
    """Loads weights written by `write_state`, strictly.

    Raises:
        ValueError: a tensor is missing, superfluous, misshapen or not finite; the names are given.
    """
    own = weights(model)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        _must_match(folder / WEIGHTS, set(own), set(file.keys()))
        for name, tensor in own.items():
            saved = file.get_tensor(name)
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                had, has = f"{saved.dtype}{list(saved.shape)}", f"{tensor.dtype}{list(tensor.shape)}"
                raise ValueError(f"{folder / WEIGHTS}: {name} is {had}, the model has {has}")
            if not torch.isfinite(saved).all():
                raise ValueError(f"{folder / WEIGHTS}: {name} holds values that are not finite")
            tensor.data.copy_(saved)


def read_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Loads moments, learning rates and schedule written by `write_state`.

    Raises:
        ValueError: the moments are not those of the parameters that train.
    """
    progress = json.loads((folder / PROGRESS).read_text())
    trained = _trained(model, optimizer)
    with safe_open(folder / MOMENTS, framework="pt") as file:
        names = {key.rpartition("/")[0] for key in file.keys()}
        _must_match(
            folder / MOMENTS, names & trained.keys(), names
        )  # a parameter that got no gradient yet has no moments
        for key in file.keys():
            name, _, kind = key.rpartition("/")
            device = "cpu" if kind == "step" and not optimizer.defaults.get("fused") else trained[name].device
            optimizer.state[trained[name]][kind] = file.get_tensor(key).to(device)
    for group, saved in zip(optimizer.param_groups, progress["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    scheduler.load_state_dict(progress["scheduler"])


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, as JSON."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "cuda": [bytes(state.tolist()).hex() for state in devices],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts the generators back where `rng_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_byte_tensor(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([_byte_tensor(device) for device in state["cuda"]])


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied one once."""
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def _trained(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def _must_match(path: Path, wanted: set[str], found: set[str]) -> None:
    if wanted != found:
        missing, superfluous = sorted(wanted - found), sorted(found - wanted)
        raise ValueError(
            f"{path}: missing {missing[:5]}, superfluous {superfluous[:5]} ({len(wanted)} wanted, {len(found)} found)"
        )


def _byte_tensor(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
