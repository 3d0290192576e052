"""Makes everything in `weights/` again: encoder, language model, LLaVA-VR-tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

from vision_remember.foundation.encoder import pretrain_encoder
from vision_remember.foundation.language_model import pretrain_language_model
from vision_remember.training.recipe import load_recipe
from vision_remember.training.trainer import train

RECIPES = Path("recipes") / "tiny"


def build(out: Path, *, seed: int = 0) -> Path:
    """Pretrains and trains in order; every part resumes where it stopped, and a finished one is left as it is.

    Args:
        out: folder of the runs; the models end in `out/weights`.
        seed: of the backbones; the recipes name their own.

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
    if not (weights / "llava_vr_tiny").exists():
        backbones = [f"model.vision={weights / 'encoder'}", f"model.text={weights / 'language_model'}"]
        aligned = _stage(out / "align", "align.yaml", backbones)
        tiny = _stage(out / "llava_vr_tiny", "llava_vr_tiny.yaml", [f"model.checkpoint={aligned}"])
        shutil.copytree(tiny, weights / "llava_vr_tiny")
    return weights


def _stage(folder: Path, recipe: str, overrides: list[str]) -> Path:
    return train(load_recipe(RECIPES / recipe, overrides), output_dir=folder, resume=folder.exists())
