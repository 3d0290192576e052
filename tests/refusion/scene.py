"""A small mixed batch for the tests of re-fusion: an image before its question, a text-only row, and two images in a row."""

import dataclasses

import torch
from torch import Tensor, nn

from vision_remember import plugins
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.refusion import Backbones, RefusionState, build_refusion, flat_positions

FINE, COARSE = Grid(5, 4), Grid(2, 3)  # neither side divides
V, T = COARSE.num_cells, 20
BACKBONES = Backbones(
    feature_width=6, encoder_layers=4, text_width=16, decoder_layers=3, num_heads=4, num_kv_heads=2, head_width=4
)
IMAGES = ((0, 2), (2, 0), (2, 10))  # batch row and first token of each image
GUIDANCE = ((0, 8, 13), (2, 6, 9))  # row, start and end of the user text of images 0 and 1; image 2 has none


def build(name: str, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return build_refusion({"type": name, **options}, BACKBONES)


def variants() -> list[dict]:
    """Every method of the room with its defaults, with each flag of its Config turned over, and with all of them."""
    found = []
    for name in plugins.names("refusion"):
        fields = dataclasses.fields(plugins.load("refusion", name).Config)
        flags = {field.name: not field.default for field in fields if isinstance(field.default, bool)}
        choices = [{}, *({key: value} for key, value in flags.items()), *([flags] if len(flags) > 1 else [])]
        for choice in choices:
            options = {"type": name, **choice}
            try:
                plugins.build_config("refusion", options)
            except ValueError:
                continue  # a flag that means nothing without another
            found.append(options)
    return found


def wake(module: nn.Module) -> nn.Module:
    """Moves every parameter off its start, so that a module that begins as the identity does something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.3)
    return module


def features(refusion: nn.Module, dtype: torch.dtype = torch.float32, num_images: int = len(IMAGES)) -> VisionFeatures:
    generator = torch.Generator().manual_seed(1)
    shape = (num_images, FINE.num_cells, BACKBONES.feature_width)
    levels = {index: torch.randn(shape, generator=generator).to(dtype) for index in refusion.levels}
    return VisionFeatures(levels=levels, grid=FINE)


def vision_mask() -> Tensor:
    mask = torch.zeros(3, T, dtype=torch.bool)
    for row, start in IMAGES:
        mask[row, start : start + V] = True
    return mask


def state_of(refusion: nn.Module, seen: VisionFeatures | None = None) -> RefusionState:
    """The state of the whole batch in one prefill chunk."""
    memory = refusion.memory(features(refusion) if seen is None else seen, COARSE)
    num_images = len(IMAGES)
    guidance = torch.zeros(num_images, T, dtype=torch.bool)
    for image, (_, start, end) in enumerate(GUIDANCE):
        guidance[image, start:end] = True
    return RefusionState(
        position=flat_positions(vision_mask(), num_images * V),
        rows=memory.rows.flatten(0, 1),
        valid=memory.valid.flatten(0, 1),
        place=memory.place.flatten(0, 1),
        image=torch.arange(num_images).repeat_interleave(V),
        index=torch.arange(V).repeat(num_images),
        count=torch.full((num_images * V,), V),
        batch_row=torch.tensor([row for row, _ in IMAGES]),
        max_count=V,
        guidance=guidance,
    )


def hidden_states(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, T, BACKBONES.text_width, generator=torch.Generator().manual_seed(2)).to(dtype)
