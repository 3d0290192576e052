from pathlib import Path

import torch

from vision_remember.bench.step import measure, text_lines
from vision_remember.training import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ("data.max_length=64", "training.batch_size=2", "training.muon_rates={}")


def test_what_is_reported_is_what_was_measured():
    recipe = load_recipe(RECIPES / "tiny" / "align_short.yaml", [*SHORT, "training.accumulation=3"], has_files=False)
    found = measure(recipe, beside=RECIPES / "tiny", rounds=2)
    assert (found["rows"], found["tokens"], found["accumulation"]) == (2, 128, 3)
    assert len(found["micro_batch_seconds"]) == len(found["optimizer_seconds"]) == 2
    assert all(seconds > 0 for name in ("micro_batch_seconds", "optimizer_seconds") for seconds in found[name])
    assert (found["allocated"] is None) == (not torch.cuda.is_available())
    assert "a step, 3 x the first and the second" in "\n".join(text_lines(found))


def test_an_image_of_any_resolution_is_one_that_fills_the_most_tiles():
    overrides = [*SHORT, "data.max_length=128", "model.resolution={mode: anyres}"]
    recipe = load_recipe(RECIPES / "tiny" / "align_short.yaml", overrides, has_files=False)
    assert measure(recipe, beside=RECIPES / "tiny", rounds=1)["tokens"] == 256
