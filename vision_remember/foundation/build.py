"""Makes everything in `weights/` again: encoder, language model, projectors, the aligned start of every row, LLaVA-VR-tiny."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vision_remember.foundation.encoder import pretrain_encoder
from vision_remember.foundation.language_model import pretrain_language_model
from vision_remember.foundation.projector import pretrain_projector
from vision_remember.training.recipe import load_recipe
from vision_remember.training.trainer import train

RECIPES = Path("recipes") / "tiny"
# 144 tokens, and three ways to 16: what comparisons start from.
MLP, AVG_POOL = {"type": "mlp"}, {"type": "avg_pool", "scale": 3}
PIXEL_SHUFFLE = {"type": "pixel_shuffle", "scale": 3}
TOKEN_PACKER = {"type": "token_packer", "levels": [2, 3, 4, 5], "scale": 3, "width": 128, "num_heads": 4}
PROJECTORS = (MLP, AVG_POOL, PIXEL_SHUFFLE, TOKEN_PACKER)
REMEMBER = {"type": "remember", "layers": [-1, 1, 3], "num_heads": 12, "num_kv_heads": 4}
# The rows of the demo, aligned on the same pages in the same order for as many steps.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "align_mlp": (MLP, {"type": "none"}),
    "align_avg_pool": (AVG_POOL, {"type": "none"}),
    "align_remember": (AVG_POOL, REMEMBER),
}


def build(out: Path, *, seed: int = 0) -> Path:
    """Pretrains and trains in order; every part resumes where it stopped, and a finished one is left as it is.

    Args:
        out: folder of the runs; the models end in `out/weights`.
        seed: of the backbones and projectors; the recipes name their own.

    Returns:
        `out/weights`.

    Raises:
        ValueError: the tiny recipes are not below the working directory.
    """
    if not RECIPES.is_dir():
        raise ValueError(f"{RECIPES} is not here: run this in a checkout of the project")
    weights = out / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    if not (weights / "encoder" / "config.json").exists():
        pretrain_encoder(weights, seed)
    if not (weights / "language_model" / "config.json").exists():
        pretrain_language_model(weights, seed)
    for projector in PROJECTORS:
        own = weights / f"projector_{projector['type']}"
        if not own.exists():
            pretrain_projector(own, weights, seed, projector)
    for name, (projector, refusion) in ROWS.items():
        start = {"vision": weights / "encoder", "text": weights / "language_model"}
        start["projector_weights"] = weights / f"projector_{projector['type']}"
        parts = {"projector": projector, "refusion": refusion}
        _keep(_stage(out / name, "align.yaml", {**start, **parts}), weights / name)
    trained = _stage(out / "llava_vr_tiny", "llava_vr_tiny.yaml", {"checkpoint": weights / "align_remember"})
    _keep(trained, weights / "llava_vr_tiny")
    return weights


def _stage(folder: Path, recipe: str, model: dict[str, Any]) -> Path:
    """Trains a recipe in `folder`, or what is left of it, and returns the folder of the model."""
    overrides = [f"model.{key}={value}" for key, value in model.items()]
    return train(load_recipe(RECIPES / recipe, overrides), output_dir=folder, resume=folder.exists())


def _keep(model: Path, folder: Path) -> None:
    if not folder.exists():
        shutil.copytree(model, folder)
