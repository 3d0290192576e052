"""An any-resolution image inside the model: its views pass the encoder as images, and `tiling.Layout` makes one image of them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from vision_remember.model.encoder import patch_side
from vision_remember.model.outputs import VisionRememberImageFeatures
from vision_remember.model.rows import pack_views
from vision_remember.tiling import Layout, seen_patches


def views_of(model: Any, pixel_values: Tensor, image_sizes: Tensor | None) -> Tensor:
    """What the encoder reads, after a check of the shapes.

    Args:
        model: A `VisionRememberModel`.
        pixel_values: As `VisionRememberModel.encode` takes them.
        image_sizes: long[N, 2], height and width of each image in pixels; None for a model with one canvas.

    Returns:
        The pixels as given; of an any-resolution model float[views of all images, 3, height, width].

    Raises:
        ValueError: The pixels or sizes are not those that this model's own processor makes.
    """
    shape = list(pixel_values.shape)
    if model.image_newline is None:
        if image_sizes is not None:
            raise ValueError("this model reads one canvas of every image, and got image_sizes; leave them out")
        if tuple(shape[1:]) != model.pixel_shape:
            raise ValueError(
                f"pixel_values has shape {shape}, this model reads [N, {', '.join(map(str, model.pixel_shape))}]; make the pixels with "
                "its own processor"
            )
        return pixel_values
    views = [layout.num_views for layout in layouts_of(model, image_sizes)]
    _, *canvas = model.pixel_shape
    if shape[:1] + shape[2:] != [len(views), *canvas] or shape[1] < max(views):
        raise ValueError(
            f"pixel_values has shape {shape}, these {len(views)} image_sizes ask for {[len(views), max(views), *canvas]}; make both with "
            "the model's own processor"
        )
    return torch.cat([image[:count] for image, count in zip(pixel_values, views, strict=True)])


def layouts_of(model: Any, image_sizes: Tensor | None) -> list[Layout]:
    """The layout of every image.

    Raises:
        ValueError: There are no sizes.
    """
    if image_sizes is None:
        raise ValueError("an any-resolution model needs image_sizes beside the images; take them from its processor")
    return [model.tiling.layout((height, width)) for height, width in image_sizes.tolist()]


def features_of_views(model: Any, levels: Tensor, image_sizes: Tensor | None) -> VisionRememberImageFeatures:
    """Vision tokens and memory rows of N images.

    Args:
        model: A `VisionRememberModel`.
        levels: float[views of all images, L, P, C].
        image_sizes: long[N, 2], height and width of each image in pixels.

    Returns:
        One float[n_i, D] per image, newlines included, and its rows as `rows.pack_views` lays them out.

    Raises:
        ValueError: The levels are those of other images.
    """
    layouts = layouts_of(model, image_sizes)
    views = [layout.num_views for layout in layouts]
    if len(levels) != sum(views):
        raise ValueError(
            f"{len(levels)} views in encoder_levels, these image_sizes make {sum(views)}; encode the images with this model"
        )
    newline = model.image_newline[None].to(levels)  # the last row, which NEWLINE = -1 picks
    tokens = [
        torch.cat([seen.flatten(0, 1), newline])[layout.source.to(levels.device)]
        for seen, layout in zip(model._tokens(levels).split(views), layouts, strict=True)
    ]
    assert image_sizes is not None
    memory = None
    if model.refusion.layers and model.refusion.drops_after is None:
        grid, patch = model.config.patch_grid, patch_side(model.config.vision_config)
        seen = [
            seen_patches((height, width), layout, model.tiling.canvas, grid, patch)
            for (height, width), layout in zip(image_sizes.tolist(), layouts, strict=True)
        ]
        features = model._features(levels, model.refusion)
        features = dataclasses.replace(features, valid=torch.cat(seen).to(levels.device))
        memory = pack_views(model.refusion.memory(features, model.token_grid), layouts)
    return VisionRememberImageFeatures(pooler_output=tokens, deepstack_features=memory)
