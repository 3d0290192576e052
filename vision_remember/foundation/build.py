"""Makes everything in `weights/` again: encoder, language model, the align checkpoints, LLaVA-VR-tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

from vision_remember.foundation.encoder import pretrain_encoder
from vision_remember.foundation.language_model import pretrain_language_model
from vision_remember.training.recipe import load_recipe
from vision_remember.training.trainer import train

RECIPES = Path("recipes") / "tiny"
ALIGNED = {
    "align_mlp": ["model.projector={type: mlp}", "model.refusion={type: none}"],
    "align_avg_pool": ["model.refusion={type: none}"],
    "align_remember": [],
}


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
    backbones = [f"model.vision={weights / 'encoder'}", f"model.text={weights / 'language_model'}"]
    for name, row in ALIGNED.items():
        _stage(RECIPES / "align.yaml", [*backbones, *row], out, name)
    _stage(RECIPES / "llava_vr_tiny.yaml", [f"model.checkpoint={weights / 'align_remember'}"], out, "llava_vr_tiny")
    return weights


def _stage(recipe: Path, overrides: list[str], out: Path, name: str) -> None:
    target = out / "weights" / name
    if not target.exists():
        model = train(load_recipe(recipe, overrides), output_dir=out / name, resume=(out / name).exists())
        shutil.copytree(model, target)
