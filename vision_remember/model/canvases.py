"""From RGB images to the pixels of all their views: one canvas each, crops of an enlarged page, or the tiles of any resolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from vision_remember.geometry import Grid
from vision_remember.model.pixels import PAGE, crops, pixel_shape, place_on_canvas, size_of, tiles
from vision_remember.tiling import Tiling


@dataclass(frozen=True, kw_only=True)
class Canvases:
    """What one model sees of an image.

    Attributes:
        image_processor: The encoder's own; it scales and normalises.
        tiling: How images reach the canvas.
        views: Grids of canvases of the enlarged pages that re-fusion reads; none for an any-resolution model.
    """

    image_processor: BaseImageProcessor
    tiling: Tiling
    views: tuple[Grid, ...] = ()

    def base(self, image: Image.Image) -> Image.Image:
        """The whole image on one canvas."""
        mode = "resize" if self.tiling.is_anyres else self.tiling.resolution.mode
        return place_on_canvas(image, self._canvas, self.image_processor, mode)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels of n RGB images.

        Returns:
            float[n, 3, height, width]; float[n, 1 + X, 3, height, width] where re-fusion reads X crops, or, at any resolution, where the
            image with the most views has X tiles, the others being filled up with zeros.
        """
        if self.tiling.is_anyres:
            views = [self._of_any_resolution(image) for image in images]
            return stack_views(views) if views else torch.empty(0, 1, 3, *self.tiling.canvas)
        shape = pixel_shape(self.tiling.canvas, self.views)
        if not images:
            return torch.empty(0, *shape)
        mode = self.tiling.resolution.mode
        shown = [
            crop
            for image in images
            for view in (PAGE, *self.views)
            for crop in crops(image, view, self._canvas, self.image_processor, mode)
        ]
        return self._normalised(shown).reshape(len(images), *shape)

    @property
    def _canvas(self) -> tuple[int, int]:
        return self.tiling.canvas[1], self.tiling.canvas[0]

    def _of_any_resolution(self, image: Image.Image) -> Tensor:  # [1, views, 3, height, width]
        layout = self.tiling.layout(size_of(image))
        shown = [self.base(image), *tiles(image, layout, self._canvas, self.image_processor)]
        return self._normalised(shown)[None]

    def _normalised(self, shown: list[Image.Image]) -> Tensor:
        # Some encoders' processors would still crop the canvas, to a size of their own.
        whole = {"do_resize": False, "do_center_crop": False}
        return self.image_processor(shown, return_tensors="pt", **whole)["pixel_values"]


def stack_views(pixels: Sequence[Tensor]) -> Tensor:
    """Images with different numbers of views as one batch.

    Args:
        pixels: float[n_i, X_i, 3, height, width] each; n_i may be 0.

    Returns:
        float[sum of n_i, max of X_i, 3, height, width], filled up with zeros.
    """
    most = max(tensor.shape[1] for tensor in pixels)
    return torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 0, most - x.shape[1])) for x in pixels])
