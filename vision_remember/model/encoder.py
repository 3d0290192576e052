"""What a vision encoder makes of an image, learned from its config alone, before any weight is loaded.

The encoder is built without weights and shown two empty canvases, so its own code says how many tokens it makes, of which width, at how
many levels. The tokens beyond its patch grid are class and register tokens, which every supported family puts before its patches.
"""

import copy
from typing import Any

import torch
from transformers import AutoModel

from vision_remember.geometry import Grid, encoder_grid

MAX_PREFIX_TOKENS = 16  # class and register tokens of an encoder; a larger surplus means that grid and encoder disagree
REFUSED = {
    "siglip2_vision_model": "it is a NaFlex encoder, which takes patches in place of images of one size; use a SigLIP2 of fixed "
    "resolution (its model_type is siglip)"
}


def image_size(vision_config: Any) -> tuple[int, int]:
    """Height and width of an encoder's canvas in pixels.

    Raises:
        ValueError: The encoder has no canvas of a fixed size.
    """
    if "image_size" not in vision_config.to_dict():
        raise ValueError(f"{vision_config.model_type} has no fixed image size; use an encoder with a square canvas")
    return _pair(vision_config.image_size)


def patch_side(vision_config: Any) -> int:
    """Side of an encoder's patches in pixels.

    Raises:
        ValueError: The encoder has no patches of one size, or none that are square.
    """
    if "patch_size" not in vision_config.to_dict():
        raise ValueError(
            f"{vision_config.model_type} cuts an image into no patches of one size; use a ViT-like encoder"
        )
    height, width = _pair(vision_config.patch_size)
    if height != width:
        raise ValueError(f"{vision_config.model_type} has patches of {height} x {width} pixels; use square patches")
    return height


def patch_grid(vision_config: Any) -> Grid:
    """Grid of an encoder's patches."""
    return encoder_grid(*image_size(vision_config), patch_side(vision_config))


@torch.no_grad()
def count_prefix_tokens(vision_config: Any) -> int:
    """Class and register tokens that an encoder puts before its patches.

    Args:
        vision_config: Of a vision encoder that `AutoModel` knows.

    Raises:
        ValueError: The encoder's hidden states are no plain grid of patches; names it and both numbers.
    """
    kind = vision_config.model_type
    if kind in REFUSED:
        raise ValueError(f"{kind} cannot be read: {REFUSED[kind]}")
    height, width = image_size(vision_config)
    grid = patch_grid(vision_config)
    if missing := [key for key in ("hidden_size", "num_hidden_layers") if not hasattr(vision_config, key)]:
        raise ValueError(f"the config of {kind} has no {missing[0]}; use a ViT-like encoder")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        # A copy, because building a model writes its dtype into the config.
        encoder = AutoModel.from_config(copy.deepcopy(vision_config), dtype=torch.float32).eval()
        try:
            states = encoder(torch.empty(2, 3, height, width), output_hidden_states=True).hidden_states
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{kind} does not run on {height} x {width} images alone: {error}") from error
    shapes = {tuple(state.shape) for state in states}
    if len(states) != vision_config.num_hidden_layers + 1 or len(shapes) != 1:
        raise ValueError(
            f"{kind} leaves {len(states)} hidden states of {len(shapes)} shapes, a plain ViT of {vision_config.num_hidden_layers} layers "
            f"leaves {vision_config.num_hidden_layers + 1} of one; use a ViT-like encoder"
        )
    num_tokens, channels = states[0].shape[1], states[0].shape[-1]
    surplus = num_tokens - grid.num_cells
    if states[0].ndim != 3 or len(states[0]) != 2 or not 0 <= surplus <= MAX_PREFIX_TOKENS:
        raise ValueError(
            f"{kind} makes {num_tokens} tokens of a {height} x {width} image, its {grid} patch grid has {grid.num_cells} cells (shape of "
            f"two images: {list(states[0].shape)}); this encoder is no plain grid of patches"
        )
    if channels != vision_config.hidden_size:
        raise ValueError(f"{kind} makes tokens of width {channels}, its config says {vision_config.hidden_size}")
    return surplus


def _pair(size: Any) -> tuple[int, int]:
    """Height and width, where a config gives one number for both or each of them."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
