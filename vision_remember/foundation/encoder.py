"""The embedded vision encoder: a CLIP-architecture transformer pretrained on dense targets.

For every 16 px patch it names the character or element that stands there and its colour, on pages of all families. It stands to our runs
as CLIP stands to the paper's: pretrained, frozen, and it knows nothing of questions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from vision_remember.data.synthetic.canvas import CELL, CELL_CLASSES, COLOUR_CLASSES, SIDE
from vision_remember.data.synthetic.pages import Page, families, make_page
from vision_remember.foundation.fit import Schedule, fit

SCHEDULE = Schedule(steps=600, learning_rate=1.5e-3)
BATCH = 48
MEAN = STD = 0.5


class DenseReader(nn.Module):
    """The encoder with two linear heads, dropped after pretraining, that read both of its last two layers."""

    def __init__(self, encoder: CLIPVisionModel) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.cell_head = nn.Linear(width, len(CELL_CLASSES))
        self.colour_head = nn.Linear(width, len(COLOUR_CLASSES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels float[B, 3, H, W] -> logits float[2B, P, classes] over cells and float[2B, P, colours], B rows a layer."""
        levels = self.encoder(pixel_values=pixels, output_hidden_states=True).hidden_states
        hidden = torch.cat([levels[-1], levels[-2]])[:, 1:]
        return self.cell_head(hidden), self.colour_head(hidden)


def pretrain_encoder(folder: Path, seed: int) -> CLIPVisionModel:
    """Trains, and writes encoder and image processor to `folder / "encoder"`; resumes from `folder`."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIDE * CELL,
        patch_size=CELL,
        projection_dim=128,
    )
    reader = DenseReader(CLIPVisionModel(config))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, cells, colours = _batch(seed, step)
        cells, colours = cells.repeat(2, 1), colours.repeat(2, 1)
        cell_logits, colour_logits = reader(pixels)
        weight = torch.where(cells == 0, 0.1, 1.0)  # most of a page is blank
        per_cell = nn.functional.cross_entropy(cell_logits.mT, cells, reduction="none")
        per_colour = nn.functional.cross_entropy(colour_logits.mT, colours, reduction="none")
        written = cells > 0
        right = (cell_logits.argmax(-1) == cells)[written].float().mean().item()
        return ((per_cell + 0.3 * per_colour) * weight).sum() / weight.sum(), {"right": right}

    fit(reader, loss, SCHEDULE, folder / "encoder_run", "encoder")
    reader.encoder.save_pretrained(folder / "encoder")
    size = {"height": SIDE * CELL, "width": SIDE * CELL}
    processor = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    processor.save_pretrained(folder / "encoder")
    return reader.encoder


def _batch(seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """pixels float[BATCH, 3, H, W], cells and colours int64[BATCH, P]."""
    rng = random.Random(f"{seed}/encoder/{step}")
    kinds = families()
    pages = [make_page(rng.choice(kinds), "train", seed, step * BATCH + place) for place in range(BATCH)]
    cells = torch.from_numpy(np.stack([page.cells for page in pages])).flatten(1)
    colours = torch.from_numpy(np.stack([page.colours for page in pages])).flatten(1)
    return pixels_of(pages), cells, colours


def pixels_of(pages: Sequence[Page]) -> Tensor:
    """float[B, 3, H, W], as the encoder's image processor makes them."""
    images = np.stack([np.asarray(page.image) for page in pages]).astype(np.float32) / 255
    return torch.from_numpy((images - MEAN) / STD).permute(0, 3, 1, 2).contiguous()
