"""The embedded projectors: trained to say, as the language model's own packed pages do, what stands under every vision token.

CLIP comes to LLaVA already knowing text; the embedded encoder knows characters, but no language model. These projectors make up for it, so
that the runs that start from them begin with pages that are partly legible and are about what compression loses. A projector can only say
what it kept: how much of the packed token an `avg_pool` misses is the figure `error`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, Qwen2ForCausalLM

from vision_remember.data.synthetic.pages import families, make_page
from vision_remember.foundation.chat import spell
from vision_remember.foundation.encoder import pixels_of
from vision_remember.foundation.fit import Schedule, fit
from vision_remember.foundation.packed_pages import PackedReader
from vision_remember.geometry import Grid, VisionFeatures, gather_windows, windows
from vision_remember.projectors import build_projector

SCHEDULE = Schedule(steps=400, learning_rate=5e-3, warmup=20, weight_decay=0.0)
BATCH = 32
PATCHES = Grid(12, 12)


def pretrain_projector(out: Path, foundation: Path, seed: int, options: Mapping[str, Any]) -> None:
    """Trains one projector; resumes from the folder `out` with `_run` behind its name.

    Args:
        out: Gets `model.safetensors`, with the parameter names of the module; written last.
        foundation: Holds `encoder`, `language_model` and `packing`.
        seed: Of weights and pages.
        options: Of `build_projector`.

    Raises:
        ValueError: Its tokens are no squares of cells.
    """
    name = f"projector_{options['type']}"
    encoder = CLIPVisionModel.from_pretrained(foundation / "encoder").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(foundation / "language_model")
    reader = PackedReader(Qwen2ForCausalLM.from_pretrained(foundation / "language_model"), tokenizer)
    reader.packing.load_state_dict(load_file(foundation / "packing" / "model.safetensors"))
    size = reader.packing.size
    torch.manual_seed(seed)
    widths = {"feature_width": encoder.config.hidden_size, "text_width": reader.model.config.hidden_size}
    projector: Any = build_projector(**options, **widths)
    grid = projector.tokens_out(PATCHES)
    side = PATCHES.height // grid.height
    if Grid(side * grid.height, side * grid.width) != PATCHES:
        raise ValueError(f"{options}: {grid} tokens do not cut a page of {PATCHES} cells into squares")

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{seed}/{name}/{step}")
        pages = [make_page(rng.choice(families()), "train", seed, step * BATCH + place) for place in range(BATCH)]
        cells = torch.tensor([spell(tokenizer, "".join(page.text)) for page in pages])
        with torch.no_grad():
            hidden = encoder(pixels_of(pages), output_hidden_states=True).hidden_states
            truth = reader.tokens(cells, side)
        levels = {level: hidden[level][:, 1:] for level in projector.levels}
        tokens = projector(VisionFeatures(levels=levels, grid=PATCHES))
        tokens = torch.nn.functional.rms_norm(tokens, tokens.shape[-1:]) * size
        is_written = gather_windows((cells != reader.blank)[..., None], windows(PATCHES, grid)).any(dim=(2, 3))
        error = (tokens - truth).pow(2).mean(-1) / size**2
        return error[is_written].mean() + error[~is_written].mean(), {"error": error[is_written].mean().item()}

    fit(projector, loss, SCHEDULE, out.with_name(f"{out.name}_run"), out.name.replace("_", " "))
    out.mkdir(exist_ok=True)
    save_file(projector.state_dict(), out / "model.safetensors", metadata={"format": "pt"})
