"""What travels in the package: small, safetensors only, loadable by the ordinary code path."""

from pathlib import Path

import pytest

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
        assert (
            "/home/" not in (folder / "config.json").read_text() and "/tmp/" not in (folder / "config.json").read_text()
        )


def test_llava_vr_tiny_answers():
    page = make_page("layout", "test", 0, 0)
    assert isinstance(Engine.load("embedded/llava_vr_tiny").ask(page.image, page.questions[0].question), str)


def test_the_backbones_assemble():
    model = VisionRememberForConditionalGeneration.from_backbones(
        "embedded/encoder", "embedded/language_model", projector={"type": "avg_pool", "scale": 3}
    )
    assert model.config.token_grid.num_cells == 16


def test_building_outside_a_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="checkout"):
        build(tmp_path / "out")
