"""A saved folder with its card is all that a hub repository needs, and loads without any code of its own."""

import json
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from tests.model.conftest import METHODS, V1
from vision_remember.model.card import write_card


@pytest.fixture
def folder(build, processor, tmp_path):
    build(V1).save_pretrained(tmp_path, max_shard_size="60KB")
    processor.save_pretrained(tmp_path)
    return tmp_path


def rename_backbones(folder, **names):
    config = json.loads((folder / "config.json").read_text())
    for part, name in names.items():
        config[part]["_name_or_path"] = name
    (folder / "config.json").write_text(json.dumps(config))


def test_the_card_says_what_the_hub_and_people_ask(folder):
    rename_backbones(folder, vision_config="openai/clip-vit-large-patch14-336", text_config="embedded/language_model")
    card = ModelCard.load(write_card(folder, model_id="my-lab/my-model", licence="apache-2.0"))
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "vision-remember"
    assert card.data.base_model == ["openai/clip-vit-large-patch14-336"]  # what travels in a package is no hub id
    assert {"remember", "avg_pool"} <= set(card.data.tags)
    for said in (
        "# my-lab/my-model",
        "embedded/language_model",
        "4 vision tokens",
        '"layers": [-1, 1]',
        "48 x 48 pixels",
    ):
        assert said in card.text


def test_a_saved_folder_tells_nobody_where_a_backbone_lay(folder, build):
    place = build(V1).config.text_config._name_or_path
    assert place.startswith("/") and place.endswith("/qwen2")
    assert "| qwen2 |" in write_card(folder, model_id="a/b", licence="mit").read_text()
    assert json.loads((folder / "config.json").read_text())["text_config"]["_name_or_path"] == "qwen2"
    assert not [file for file in folder.iterdir() if place.encode() in file.read_bytes()]


def test_the_loading_code_of_the_card_runs_and_no_repository_code_is_involved(folder):
    card = write_card(folder, model_id=str(folder), licence="mit").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    check = "assert type(model).__module__.startswith('vision_remember.') and type(processor).__module__.startswith('vision_remember.')"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    for file in folder.iterdir():
        assert file.suffix in (".json", ".jinja", ".md", ".safetensors"), "nothing that runs, nothing pickled"
        assert file.suffix != ".json" or "auto_map" not in file.read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_a_card(build, processor, tmp_path, method):
    build(METHODS[method]).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert METHODS[method]["type"] in write_card(tmp_path, model_id="a/b", licence="mit").read_text()


def test_a_folder_that_lacks_something_or_has_a_card_is_refused(build, processor, tmp_path):
    build(V1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks processor_config.json, tokenizer.json, chat_template.jinja"):
        write_card(tmp_path, model_id="a/b", licence="mit")
    processor.save_pretrained(tmp_path)
    card = write_card(tmp_path, model_id="a/b", licence="mit")
    card.write_text("my own words")
    with pytest.raises(ValueError, match="not overwritten"):
        write_card(tmp_path, model_id="a/b", licence="mit")
    assert card.read_text() == "my own words"
