"""The embedded projectors: trained to say in the language model's own embeddings what stands under every vision token.

CLIP comes to LLaVA already knowing text; the embedded encoder knows characters, but no language model. These projectors make up for it, so
that the runs that start from them begin with pages whose characters are known and are about what compression loses. A token that owns
several characters learns the mean of their embeddings: which they are, not in which order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, Qwen2ForCausalLM

from vision_remember.data.synthetic.pages import families, make_page
from vision_remember.foundation.encoder import pixels_of
from vision_remember.foundation.fit import Schedule, fit
from vision_remember.geometry import Grid, VisionFeatures, gather_windows, windows
from vision_remember.projectors import build_projector

SCHEDULE = Schedule(steps=300, learning_rate=5e-3, warmup=20, weight_decay=0.0)
BATCH = 32
PATCHES = Grid(12, 12)


def pretrain_projector(folder: Path, seed: int, options: Mapping[str, Any]) -> None:
    """Trains one projector on `encoder` and `language_model` of `folder`; resumes from `folder`.

    Args:
        folder: Gets `projector_NAME/model.safetensors`, with the parameter names of the module.
        seed: Of weights and pages.
        options: Of `build_projector`.
    """
    name = f"projector_{options['type']}"
    encoder = CLIPVisionModel.from_pretrained(folder / "encoder").eval()
    language_model = Qwen2ForCausalLM.from_pretrained(folder / "language_model")
    embeddings = language_model.get_input_embeddings().weight.detach()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "language_model")
    torch.manual_seed(seed)
    widths = {"feature_width": encoder.config.hidden_size, "text_width": embeddings.shape[1]}
    projector: Any = build_projector(**options, **widths)
    own = windows(PATCHES, projector.tokens_out(PATCHES))
    blank = _token_id(tokenizer, " ")

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{seed}/{name}/{step}")
        pages = [make_page(rng.choice(families()), "train", seed, step * BATCH + place) for place in range(BATCH)]
        cells = torch.tensor([[_token_id(tokenizer, character) for character in "".join(page.text)] for page in pages])
        with torch.no_grad():
            hidden = encoder(pixels_of(pages), output_hidden_states=True).hidden_states
        levels = {level: hidden[level][:, 1:] for level in projector.levels}
        tokens = projector(VisionFeatures(levels=levels, grid=PATCHES))
        inside = gather_windows(cells, own)  # [B, V, W]
        written = inside != blank
        any_written = written.any(-1)
        share = torch.where(any_written[..., None], written, True).float()
        truth = (embeddings[inside] * share[..., None]).sum(2) / share.sum(2)[..., None]
        error = (tokens - truth).pow(2).mean(-1) / embeddings.pow(2).mean()
        return error[any_written].mean() + error[~any_written].mean(), {"error": error[any_written].mean().item()}

    fit(projector, loss, SCHEDULE, folder / f"{name}_run", name.replace("_", " "))
    (folder / name).mkdir(exist_ok=True)
    save_file(projector.state_dict(), folder / name / "model.safetensors", metadata={"format": "pt"})


def _token_id(tokenizer: PreTrainedTokenizerFast, character: str) -> int:
    """The token of one character, as the byte-level tokenizer calls it."""
    return tokenizer.convert_tokens_to_ids("Ġ" if character == " " else character)
