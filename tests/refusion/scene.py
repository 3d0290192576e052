"""A small mixed batch for the tests of re-fusion: an image before its question, a text-only row, and two images in a row."""

import dataclasses
import typing

import torch
from torch import Tensor, nn

from vision_remember import plugins
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.refusion import Backbones, Memory, Method, RefusionState, build_refusion, flat_positions

FINE, COARSE = Grid(5, 4), Grid(2, 3)  # neither side divides
DIVIDED = Grid(4, 6)  # both do, for methods that refuse the other
V, T = COARSE.num_cells, 20
BACKBONES = Backbones(
    feature_width=6, encoder_layers=4, text_width=16, decoder_layers=4, num_heads=4, num_kv_heads=2, head_width=4
)
IMAGES = ((0, 2), (2, 0), (2, 10))  # batch row and first token of each image
GUIDANCE = ((0, 8, 13), (2, 6, 9))  # row, start and end of the user text of images 0 and 1; image 2 has none


def build(name: str, seed: int = 0, **options) -> Method:
    small = {"width": 32} if hasattr(plugins.load("refusion", name).Config, "width") else {}
    torch.manual_seed(seed)
    return build_refusion({"type": name, **small, **options}, BACKBONES)


def variants() -> list[dict]:
    """Every method of the room with its defaults, with each flag of its Config turned over, and with all of them.

    A whole number that is 0 is a flag too; one that the method chooses itself (None) is tried at 0, by itself.
    """
    found = []
    for name in plugins.names("refusion"):
        config = plugins.load("refusion", name).Config
        fields, hints = dataclasses.fields(config), typing.get_type_hints(config)
        flags = {field.name: not field.default for field in fields if isinstance(field.default, bool)}
        flags |= {field.name: 3 for field in fields if type(field.default) is int and not field.default}
        none = {field.name: 0 for field in fields if hints[field.name] == int | None}
        choices = [{}, *({key: value} for key, value in (flags | none).items()), *([flags] if len(flags) > 1 else [])]
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


class Inserted(nn.Module):
    """The insertions of all layers, one after the other, without a decoder between them."""

    def __init__(self, refusion: Method) -> None:
        super().__init__()
        self.layers = refusion.layers
        self.insertions = nn.ModuleList(refusion.insertion(layer) for layer in refusion.layers)

    def forward(self, hidden: Tensor, state: RefusionState) -> Tensor:
        for layer, insertion in zip(self.layers, self.insertions, strict=True):
            hidden, passed_on = insertion(hidden, state, layer)
            assert passed_on is state
        return hidden


def features(
    refusion: Method, dtype: torch.dtype = torch.float32, num_images: int = len(IMAGES), grid: Grid | None = None
) -> VisionFeatures | Tensor:
    """What a method makes its memory of: encoder levels or, where it asks for views, the vision tokens of their crops."""
    generator = torch.Generator().manual_seed(1)
    if refusion.views:
        shape = (num_images, sum(view.num_cells for view in refusion.views), V, BACKBONES.text_width)
        return torch.randn(shape, generator=generator).to(dtype)
    grid = grid or patch_grid(refusion, dtype)
    shape = (num_images, grid.num_cells, BACKBONES.feature_width)
    levels = {index: torch.randn(shape, generator=generator).to(dtype) for index in refusion.levels}
    return VisionFeatures(levels=levels, grid=grid)


def memory_of(refusion: Method, seen: VisionFeatures | Tensor, coarse: Grid = COARSE) -> Memory:
    return (refusion.memory_of_views if refusion.views else refusion.memory)(seen, coarse)


def tensors_of(seen: VisionFeatures | Tensor) -> list[Tensor]:
    return [seen] if isinstance(seen, Tensor) else list(seen.levels.values())


def with_tensors(seen: VisionFeatures | Tensor, tensors: list[Tensor]) -> VisionFeatures | Tensor:
    """The same with other numbers."""
    if isinstance(seen, Tensor):
        return tensors[0]
    return dataclasses.replace(seen, levels=dict(zip(seen.levels, tensors, strict=True)))


def patch_grid(refusion: Method, dtype: torch.dtype) -> Grid:
    """The awkward patch grid or, for a method that refuses it and says why, the one that divides."""
    try:
        refusion.memory(features(refusion, dtype, grid=FINE), COARSE)
    except ValueError as error:
        assert f"{FINE}" in f"{error}" and f"{COARSE}" in f"{error}", "a refusal names both grids"
        return DIVIDED
    return FINE


def vision_mask(num_tokens: int = V) -> Tensor:
    mask = torch.zeros(3, T, dtype=torch.bool)
    for row, start in IMAGES:
        mask[row, start : start + num_tokens] = True
    return mask


def state_of(refusion: Method, seen: VisionFeatures | Tensor | None = None, coarse: Grid = COARSE) -> RefusionState:
    """The state of the whole batch in one prefill chunk; an image has at most V tokens, those of ``coarse``."""
    memory = memory_of(refusion, features(refusion) if seen is None else seen, coarse)
    num_images, num_tokens = len(IMAGES), coarse.num_cells
    guidance = torch.zeros(num_images, T, dtype=torch.bool)
    for image, (_, start, end) in enumerate(GUIDANCE):
        guidance[image, start:end] = True
    return RefusionState(
        position=flat_positions(vision_mask(num_tokens), num_images * num_tokens),
        rows=memory.rows.flatten(0, 1),
        valid=memory.valid.flatten(0, 1),
        place=memory.place.flatten(0, 1),
        image=torch.arange(num_images).repeat_interleave(num_tokens),
        index=torch.arange(num_tokens).repeat(num_images),
        count=torch.full((num_images * num_tokens,), num_tokens),
        batch_row=torch.tensor([row for row, _ in IMAGES]),
        max_count=num_tokens,
        guidance=guidance,
    )


def rows_of_images(memory: Memory, first: int = 1) -> RefusionState:
    """The state of a batch with one image in every row, whose tokens begin at position ``first`` of ``first + V + 1``."""
    num_images, num_tokens = memory.valid.shape[:2]
    length, images = first + num_tokens + 1, torch.arange(num_images)
    return RefusionState(
        position=(images[:, None] * length + first + torch.arange(num_tokens)).flatten(),
        rows=memory.rows.flatten(0, 1),
        valid=memory.valid.flatten(0, 1),
        place=memory.place.flatten(0, 1),
        image=images.repeat_interleave(num_tokens),
        index=torch.arange(num_tokens).repeat(num_images),
        count=torch.full((num_images * num_tokens,), num_tokens),
        batch_row=images,
        max_count=num_tokens,
    )


def hidden_states(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, T, BACKBONES.text_width, generator=torch.Generator().manual_seed(2)).to(dtype)
