"""The parameters of a re-fusion method alone, for a model that others publish: a safetensors file with the options in its metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

OPTIONS = "refusion"  # key of the metadata
PLACES = {"refusion", "refusion_before"}  # names of the modules that a method puts into a model


def save(model: nn.Module, options: dict[str, Any], file: str | Path) -> None:
    """Save what a method has put into a model.

    Args:
        model: With a method attached.
        options: `{"type": ..., options}` of the method.
        file: Is written, or replaced.
    """
    weights = {name: tensor.contiguous() for name, tensor in _inserted(model).items()}
    save_file(weights, file, metadata={OPTIONS: json.dumps(options)})


def read(file: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options and weights of a saved file.

    Raises:
        ValueError: There is no such file, or it was not made by `save`.
    """
    if not Path(file).is_file():
        raise ValueError(f"no file {file}; give a file of save_refusion, or the options of a method")
    with safe_open(file, framework="pt") as saved:
        options = (saved.metadata() or {}).get(OPTIONS)
        if options is None:
            raise ValueError(f"{file} holds no options of a re-fusion method; give a file of save_refusion")
        return json.loads(options), {name: saved.get_tensor(name) for name in saved.keys()}


@torch.no_grad()
def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy saved weights into a model with the same method attached.

    Raises:
        ValueError: A name or shape differs; names the first.
    """
    own = _inserted(model)
    for name in sorted(own.keys() | weights.keys()):
        if name not in own or name not in weights:
            place = "file" if name in weights else "model"
            raise ValueError(f"{name} is only in the {place}; file and model belong to different backbones")
        if own[name].shape != weights[name].shape:
            raise ValueError(
                f"{name} has shape {list(weights[name].shape)} in the file and {list(own[name].shape)} in the model; they belong to "
                "different backbones"
            )
        own[name].copy_(weights[name])


def _inserted(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if PLACES.intersection(name.split("."))}
