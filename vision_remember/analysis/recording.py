"""What a model records about itself while it reads pages: its hidden states, its attention, and where its re-fusion looked.

Everything comes from recorded outputs; no module is patched. A model with a memory is read twice: as it is, and *muted*, with the
memory left out of the call, so that no insertion acts and everything else is the same. The difference is what looking again does inside
these weights. What a model without re-fusion would have learned is another question, answered by analysing such a model beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vision_remember.analysis.attention_density import text_to_vision
from vision_remember.analysis.sheets import Sheet
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Engine

AS_IT_IS, MUTED = "as it is", "muted"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What one model did on B sheets, one way.

    Attributes:
        states: `float[B, V, D]` per number of layers passed: as the projector made the vision tokens, then as each decoder layer leaves
            them, re-fusion included; the last one has passed the decoder's final norm. Where a method drops tokens the list ends there.
        share: `float[B, S]`, share of the text's attention that vision tokens get in each of S decoder layers.
        density: `float[B, S]`, that share over the share of an even look.
        looks: `float[B, V, W]` by the decoder layer that the insertion follows: attention over a token's window, mean over heads.
    """

    states: list[Tensor]
    share: Tensor
    density: Tensor
    looks: dict[int, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Both readings of one model.

    Attributes:
        features: `float[B, P, C]`, the deepest encoder level that the model reads.
        readings: By name, `AS_IT_IS` and, for a model with a memory, `MUTED`.
    """

    features: Tensor
    readings: dict[str, Reading]


def record(
    engine: Engine, sheets: Sequence[Sheet], *, batch_size: int = 16, progress: Callable[[int], None] | None = None
) -> Recording:
    """Lets a model read sheets, each with its question, up to the point where it would begin to answer.

    Args:
        engine: The model; left as it was.
        sheets: B of them.
        batch_size: Sheets per call. It changes no result.
        progress: Called with the number of sheets of each finished batch.
    """
    model = engine.model
    features: list[Tensor] = []
    batches: dict[str, list[Reading]] = {}
    with torch.inference_mode(), _eager(model):
        for start in range(0, len(sheets), batch_size):
            batch = sheets[start : start + batch_size]
            inputs = _inputs(engine, batch)
            levels = model.encode(inputs.pop("pixel_values"))
            deepest = levels[:, -1]
            features.append((deepest[:, 0] if model.model.refusion.views else deepest).cpu())
            image = model.get_image_features(encoder_levels=levels)
            ways = {AS_IT_IS: image}
            if image.deepstack_features is not None:
                ways[MUTED] = replace(image, deepstack_features=None)
            for name, given in ways.items():
                batches.setdefault(name, []).append(_read(model, inputs, given))
            if progress is not None:
                progress(len(batch))
    return Recording(
        features=torch.cat(features), readings={name: _joined(readings) for name, readings in batches.items()}
    )


def _inputs(engine: Engine, sheets: Sequence[Sheet]) -> Any:
    encodings = [
        engine.processor.encode(first_question(sheet.question, num_images=1), [sheet.image], add_generation_prompt=True)
        for sheet in sheets
    ]
    inputs = engine.processor.pad(encodings, side="left")
    inputs.pop("labels")
    return inputs.to(engine.model.device)


def _read(model: Any, inputs: Any, image: Any) -> Reading:
    outputs = model(
        **inputs,
        mm_encoder_outputs={"image": image},
        output_hidden_states=True,
        output_attentions=True,
        output_remember_attentions=True,
        logits_to_keep=1,
    )
    is_vision, is_token = inputs["input_ids"] == model.config.image_token_id, inputs["attention_mask"].bool()
    num_rows, length = is_vision.shape
    # A method that drops tokens leaves shorter states and attentions, and nothing says which positions they stand for.
    whole = next((i for i, state in enumerate(outputs.hidden_states) if state.shape[1] != length), None)
    measured = [text_to_vision(x, is_vision, is_token) for x in outputs.attentions[:whole] if x.shape[-1] == length]
    recorded = outputs.remember_attentions
    looks = dict(zip(sorted(model.model.refusion.layers), recorded, strict=True)) if recorded else {}
    return Reading(
        states=[state[is_vision].unflatten(0, (num_rows, -1)).cpu() for state in outputs.hidden_states[:whole]],
        share=torch.stack([share for share, _ in measured], dim=1).cpu(),
        density=torch.stack([density for _, density in measured], dim=1).cpu(),
        looks={layer: weights.float().mean(1).unflatten(0, (num_rows, -1)).cpu() for layer, weights in looks.items()},
    )


def _joined(readings: Sequence[Reading]) -> Reading:
    return Reading(
        states=[torch.cat(states) for states in zip(*(reading.states for reading in readings), strict=True)],
        share=torch.cat([reading.share for reading in readings]),
        density=torch.cat([reading.density for reading in readings]),
        looks={layer: torch.cat([reading.looks[layer] for reading in readings]) for layer in readings[0].looks},
    )


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Makes the decoder compute attention the way that can be recorded."""
    decoder = model.model.language_model
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
