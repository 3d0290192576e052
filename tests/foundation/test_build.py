"""What travels in the package: small, safetensors only, loadable by the ordinary code path."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from vision_remember import Engine, VisionRememberForConditionalGeneration
from vision_remember.data.synthetic import make_page
from vision_remember.foundation import build

WEIGHTS = Path(build.__globals__["__file__"]).parent / "weights"


def test_encoder_language_model_and_llava_vr_tiny_take_at_most_40_mb():
    names = ("encoder", "language_model", "llava_vr_tiny")
    files = [file for name in names for file in (WEIGHTS / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6


def test_weights_are_safetensors_with_a_card_and_no_machine_path():
    assert (WEIGHTS / "README.md").is_file()
    for folder in (folder for folder in WEIGHTS.iterdir() if folder.is_dir()):
        assert {file.suffix for file in folder.iterdir()} <= {".safetensors", ".json", ".jinja"}
        for file in folder.glob("*.json"):
            assert not any(place in file.read_text() for place in ("/home/", "/tmp/", "/root/", "/work/"))


def test_llava_vr_tiny_answers():
    page = make_page("layout", "test", 0, 0)
    assert isinstance(Engine.load("embedded/llava_vr_tiny").ask(page.image, page.questions[0].question), str)


def test_the_backbones_assemble():
    model = VisionRememberForConditionalGeneration.from_backbones(
        "embedded/encoder", "embedded/language_model", projector={"type": "avg_pool", "scale": 3}
    )
    assert model.config.token_grid.num_cells == 16


@pytest.mark.parametrize("name", ["mlp", "avg_pool"])
def test_the_projectors_are_those_of_the_aligned_rows(name):
    start = load_file(WEIGHTS / f"projector_{name}" / "model.safetensors")
    aligned = load_file(WEIGHTS / f"align_{name}" / "model.safetensors")
    prefix = "model.multi_modal_projector."
    assert {key: value.shape for key, value in start.items()} == {
        key.removeprefix(prefix): value.shape for key, value in aligned.items() if key.startswith(prefix)
    }


def test_building_outside_a_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="checkout"):
        build(tmp_path / "out")
