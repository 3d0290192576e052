"""A tiny encoder, a tiny LM and a dozen coloured squares with questions: the smallest run that is a real one."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny import save_encoder, save_language_model
from vision_remember.training import Recipe, load_recipe

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    return {
        "vision": save_encoder(folder / "vision", num_layers=2),
        "text": save_language_model(folder / "text", num_layers=2),
    }


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A LLaVA JSON folder of 12 samples; the last one is text alone."""
    folder = tmp_path_factory.mktemp("squares")
    records = []
    for number in range(11):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (48, 48), colour).save(folder / f"{number}.png")
        asked = [
            {"from": "human", "value": "<image>\nWhich colour?"},
            {"from": "gpt", "value": colour * (1 + number % 3)},
        ]
        records.append({"id": f"square-{number}", "image": f"{number}.png", "conversations": asked})
    said = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "hello"}]
    records.append({"id": "text-alone", "conversations": said})
    (folder / "data.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def recipe_file(tmp_path, backbones, squares) -> Path:
    path = tmp_path / "align.yaml"
    path.write_text(f"""\
name: squares
seed: 1
model:
  vision: {backbones["vision"]}
  text: {backbones["text"]}
  projector: {{type: avg_pool, scale: 2}}
  refusion: {{type: remember, layers: [0]}}
data:
  sources:
    - path: {squares}
training:
  trainable: [projector, refusion]
  learning_rates: {{projector: 0.01, refusion: 0.01}}
  steps: 6
  batch_size: 4
  save_every: 2
""")
    return path


@pytest.fixture
def make_recipe(recipe_file):
    def make(*overrides: str) -> Recipe:
        return load_recipe(recipe_file, overrides)

    return make


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
