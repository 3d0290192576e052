"""Names of models, as we read them and as others are told them."""

import pytest

from vision_remember.model.embedded import EMBEDDED, model_path, public_name


def test_a_model_that_ships_is_named_alike_wherever_the_package_lies():
    assert model_path("embedded/encoder") == str(EMBEDDED / "encoder")
    assert public_name(model_path("embedded/encoder")) == public_name("embedded/encoder") == "embedded/encoder"


@pytest.mark.parametrize(
    ("name", "told"), [("openai/clip-vit", "openai/clip-vit"), ("/srv/mine/clip", "clip"), ("./a/b", "b"), ("", "")]
)
def test_a_hub_id_is_told_and_a_place_is_not(name, told):
    assert public_name(name) == told


def test_a_folder_here_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("runs/mine") == "mine"


def test_a_model_that_does_not_ship_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"embedded/nothing is not in the package; it has .*embedded/encoder"):
        model_path("embedded/nothing")
