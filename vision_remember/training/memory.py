"""What one GPU must hold to train a recipe: an estimate from shapes, made before any weight exists.

All processes keep the whole model (DDP, no sharding), in float32; `precision: bfloat16` computes in copies of half the size.

    weights      4 bytes a parameter                  gradients    4 bytes a trained parameter
    copies       2 bytes a parameter (bfloat16)       buckets      4 bytes a trained parameter, between several GPUs
    optimizer    8 bytes a trained parameter          runtime      `RUNTIME`, what CUDA, its libraries and fragmentation take

Activations are those of one micro-batch of B rows that are all T = `data.max_length` tokens long, with one image each; s is the size of a
computed number (4, or 2 in bfloat16), D the width, Q the width of all attention heads, I the inner width of the MLP, X the views of an
image (1; tiles or crops make more), P the patches of all of them and C the width of the encoder, L the levels that re-fusion reads.

    decoder layer    B T (2 D (8 + s) + s (5 Q + 4 I))   two norms that keep input, normalised and scaled copy; query, key, value and
                                                         output of the heads; gate, its activation, up and their product
    encoder layer    B (P + X) (2 C (4 + s) + s (5 C + 3 I))
    insertion        B P L C (4 + s)                     the memory, and its normalised copy
    head             B T vocabulary (12 + s)             logits, and three float32 copies inside the loss and its gradient

Without activation checkpointing a trained path keeps every layer; with it, the input of every layer (4 bytes a number) and one layer whole.
A frozen encoder keeps one layer for as long as it runs. What projectors keep is left out: it is small beside one decoder layer.

Source: the accounting of Korthikanti et al. (arXiv 2205.05198, section 4), for gated MLPs and fused attention; the counts are what
autograd saves for Qwen2 and CLIP layers of transformers 5, held against it by `tests/training/test_memory.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vision_remember.training.recipe import TrainingSection

RUNTIME = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU, by what they are for."""

    weights: int
    copies: int
    gradients: int
    buckets: int
    optimizer: int
    activations: int
    runtime: int = RUNTIME

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def memory_per_gpu(
    config: Any,
    parameters: dict[str, dict[str, int]],
    training: TrainingSection,
    *,
    rows: int,
    length: int,
    num_gpus: int,
) -> Memory:
    """The estimate for one GPU.

    Args:
        config: `VisionRememberConfig` of the model.
        parameters: of every part, as `freeze` counts them.
        training: precision, activation checkpointing, what learns.
        rows: B, samples of one micro-batch of one process.
        length: T, tokens of the longest sample.
        num_gpus: processes that share a step.
    """
    total, trained = (sum(part[kind] for part in parameters.values()) for kind in ("total", "trainable"))
    is_half = training.precision == "bfloat16"
    return Memory(
        weights=4 * total,
        copies=2 * total if is_half else 0,
        gradients=4 * trained,
        buckets=4 * trained if num_gpus > 1 else 0,
        optimizer=8 * trained,
        activations=sum(activations(config, training, rows=rows, length=length).values()),
    )


def activations(config: Any, training: TrainingSection, *, rows: int, length: int) -> dict[str, int]:
    """Bytes that are kept for the backward pass of one micro-batch, by part; arguments as `memory_per_gpu`."""
    size = 2 if training.precision == "bfloat16" else 4
    text, vision = config.text_config, config.vision_config
    values = text.to_dict()
    heads = text.num_attention_heads * (values.get("head_dim") or text.hidden_size // text.num_attention_heads)
    tokens, images = rows * length, rows * num_views(config)
    patches = images * config.patch_grid.num_cells
    _, refusion = config.build_plugins()
    decoder = tokens * (2 * text.hidden_size * (8 + size) + size * (5 * heads + 4 * text.intermediate_size))
    insertion = patches * len(refusion.levels) * vision.hidden_size * (4 + size)
    seen = patches + images
    encoder = seen * (
        2 * vision.hidden_size * (4 + size) + size * (5 * vision.hidden_size + 3 * vision.intermediate_size)
    )
    decoder_layers, encoder_layers = text.num_hidden_layers, vision.num_hidden_layers
    if training.activation_checkpointing:
        kept = {
            "decoder": 4 * tokens * text.hidden_size * decoder_layers + decoder,
            "encoder": 4 * seen * vision.hidden_size * encoder_layers + encoder,
            "insertions": insertion,
        }
    else:
        kept = {
            "decoder": decoder * decoder_layers,
            "encoder": encoder * encoder_layers,
            "insertions": insertion * len(refusion.layers),
        }
    if "encoder" not in training.trainable:
        kept["encoder"] = encoder
    return {**kept, "head": tokens * text.vocab_size * (12 + size)}


def num_views(config: Any) -> int:
    """The most canvases that the encoder reads of one image: tiles of any resolution, or crops for re-fusion, beside the image itself."""
    return config.pixel_shape[0] if len(config.pixel_shape) == 4 else 1
