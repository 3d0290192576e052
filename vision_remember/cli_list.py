"""`vision-remember list`: what is in the two plug-in rooms, what each costs at the size of the paper's model, and where it comes from.

Nothing is listed by name: the rooms are read, a whole model is built around each plug-in with its default options, without weights, and
its prefill is counted: one page and a short question, until the first answer token can be chosen.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from transformers import CLIPVisionConfig, Qwen2Config

from vision_remember import plugins
from vision_remember.geometry import VisionFeatures
from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration
from vision_remember.model.flops import count_flops, prefill_flops, prompt_ids, without_weights

NUM_TEXT_TOKENS = 50
BASE = {"type": "avg_pool", "scale": 2}  # re-fusion methods are counted on this projector: 144 tokens
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
QWEN2_1_5B = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def projectors() -> list[dict[str, Any]]:
    """Every projector without re-fusion: tokens, parameters, its own FLOPs, those of the whole prefill, and origin."""
    found = []
    for name in plugins.names("projectors"):
        model = paper_model({"type": name}, {"type": "none"})
        numbers = {
            "tokens": model.config.token_grid.num_cells,
            "parameters": _num_parameters(model, "projector"),
            "flops": _projector_flops(model),
            "prefill_flops": prefill_total(model),
        }
        found.append({"name": name, **numbers, **_source("projectors", name)})
    return found


def refusions() -> list[dict[str, Any]]:
    """Every re-fusion method on the tokens of `BASE`: canvases read, layers, parameters, FLOPs added to prefill (or saved), origin."""
    without = prefill_total(paper_model(BASE, {"type": "none"}))
    found = []
    for name in plugins.names("refusion"):
        model = paper_model(BASE, {"type": name})
        added = prefill_total(model) - without
        numbers = {
            "tokens": model.config.token_grid.num_cells,
            "canvases": _num_canvases(model),
            "layers": [*model.model.refusion.layers],
            "parameters": _num_parameters(model, "refusion"),
            "added_flops": added,
            "added_percent": round(100 * added / without, 2),
        }
        found.append({"name": name, **numbers, **_source("refusion", name)})
    return found


def paper_model(projector: dict[str, Any], refusion: dict[str, Any]) -> VisionRememberForConditionalGeneration:
    """CLIP-L/14-336 and Qwen2-1.5B with these plug-ins between them, for counting: it has shapes and no weights."""
    return without_weights(
        VisionRememberConfig(
            vision_config=CLIPVisionConfig(**CLIP_L_336),
            text_config=Qwen2Config(**QWEN2_1_5B),
            projector=projector,
            refusion=refusion,
        )
    )


def prefill_total(model: VisionRememberForConditionalGeneration) -> int:
    """FLOPs of one page and :data:`NUM_TEXT_TOKENS` tokens of text, encoder included."""
    config = model.config
    views = config.pixel_shape[:-3]  # empty where one canvas is read
    shape = (1, len(model.encoder_level_indices), *views, config.patch_grid.num_cells, config.vision_config.hidden_size)
    inputs = {"input_ids": prompt_ids(config, NUM_TEXT_TOKENS), "encoder_levels": torch.zeros(shape)}
    return _num_canvases(model) * _encoder_flops() + prefill_flops(model, inputs)


def tables(found: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """What :func:`projectors` and :func:`refusions` found, for people; FLOPs in billions."""
    base = f"on {BASE['type']}, scale {BASE['scale']}"
    titles = {"projectors": "projectors, without re-fusion", "refusion": f"re-fusion methods, {base}"}
    return [_table(titles[room], rows) for room, rows in found.items()]


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    shapes = f"CLIP-L/14-336 + Qwen2-1.5B, default options, one page and {NUM_TEXT_TOKENS} text tokens"
    table = Table(title=f"{title} ({shapes})", title_justify="left", box=None)
    for key, value in rows[0].items():
        if key != "about":
            head = key.replace("flops", "GFLOP").replace("percent", "%").replace("_", " ")
            table.add_column(head, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(key, value)) for key, value in row.items() if key != "about"))
    return table


def _cell(key: str, value: Any) -> str:
    if key.endswith("flops"):
        return f"{value / 1e9:,.2f}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _projector_flops(model: VisionRememberForConditionalGeneration) -> int:
    projector: Any = model.model.multi_modal_projector
    grid, width = model.config.patch_grid, model.config.vision_config.hidden_size
    levels = {level: torch.zeros(1, grid.num_cells, width) for level in projector.levels}
    return count_flops(lambda: projector(VisionFeatures(levels=levels, grid=grid)))


@functools.cache
def _encoder_flops() -> int:
    """The encoder is the same for all and reads every canvas by itself, so one is counted once."""
    model = paper_model(BASE, {"type": "none"})
    return count_flops(lambda: model.encode(torch.zeros(1, *model.config.pixel_shape)))


def _num_canvases(model: VisionRememberForConditionalGeneration) -> int:
    """How many images of the encoder's size are made of one page."""
    return math.prod(model.config.pixel_shape[:-3])


def _num_parameters(model: VisionRememberForConditionalGeneration, part: str) -> int:
    return sum(parameter.numel() for _, parameter in model.parts()[part])


def _source(room: str, name: str) -> dict[str, str | None]:
    about = (plugins.load(room, name).__doc__ or "").strip().split("\n")[0]
    return {**asdict(plugins.origin(room, name)), "about": about}
