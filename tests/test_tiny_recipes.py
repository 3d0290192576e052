"""Every recipe in `recipes/tiny` trains, and the field is complete: no projector and no re-fusion method without one."""

import json
from pathlib import Path

import pytest
import torch

from vision_remember import plugins
from vision_remember.data.synthetic import make_page
from vision_remember.model import VisionRememberForConditionalGeneration
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Engine, Request
from vision_remember.training import FeatureCache, load_recipe, train
from vision_remember.training.located import read

TINY = Path(__file__).parents[1] / "recipes" / "tiny"
RECIPES = [path for path in sorted(TINY.glob("*.yaml")) if "training" in read(path).value]  # the others are comparisons
# A projector's plain recipe is all of its recipe with re-fusion but one line.
TRAINED = [
    pytest.param(
        path,
        id=path.stem,
        marks=pytest.mark.slow if path.with_stem(f"{path.stem}_remember") in RECIPES and path.stem != "mlp" else [],
    )
    for path in RECIPES
]
FEW_PAGES = (
    "model.checkpoint=scratch",
    "training.steps=20",
    "training.batch_size=2",
    "data.sources=[{synthetic: {count: 2, seed: 3, families: [form], questions: 1}}]",
)


@pytest.fixture(scope="module")
def feature_cache() -> FeatureCache:
    return FeatureCache()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_projector_and_every_refusion_method_has_a_recipe():
    models = [read(path).value["model"].plain() for path in RECIPES]
    pairs = {(model["projector"]["type"], model["refusion"]["type"]) for model in models}
    for projector in plugins.names("projectors"):
        assert {(projector, "none"), (projector, "remember")} <= pairs, projector
    for refusion in plugins.names("refusion"):
        assert ("avg_pool", refusion) in pairs, refusion


@pytest.mark.parametrize("path", TRAINED)
def test_a_tiny_recipe_trains_and_answers_the_same_when_loaded_again(path, feature_cache, tmp_path, monkeypatch):
    trained = []
    save = VisionRememberForConditionalGeneration.save_pretrained

    def saved(model, *args, **kwargs):
        trained.append(model)
        return save(model, *args, **kwargs)

    monkeypatch.setattr(VisionRememberForConditionalGeneration, "save_pretrained", saved)
    folder = train(load_recipe(path, FEW_PAGES), output_dir=tmp_path, feature_cache=feature_cache)

    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])

    loaded = Engine.load(folder, device="cpu")
    weights = trained[-1].state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    pages = [make_page("form", "test", 0, index) for index in range(2)]
    requests = [Request(first_question(page.questions[0].question, num_images=1), [page.image]) for page in pages]
    before = Engine(trained[-1].cpu(), loaded.processor).answer(requests, max_new_tokens=6)
    assert loaded.answer(requests, max_new_tokens=6) == before
