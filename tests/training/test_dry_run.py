import dataclasses
import functools
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig

from vision_remember.training import load_recipe
from vision_remember.training.distributed import share
from vision_remember.training.dry_run import dry_run
from vision_remember.training.start import build_model, freeze

FLAGSHIP = Path(__file__).parents[2] / "recipes" / "llava_vr_2b"
GIB = 2**30


@functools.cache
def of(name: str, *overrides: str, **options):
    recipe = load_recipe(FLAGSHIP / name, overrides, has_files=False)
    return recipe, dry_run(recipe, beside=FLAGSHIP, **options)


@pytest.mark.parametrize(("name", "gpus"), [("align.yaml", 1), ("instruct.yaml", 8)])
def test_the_flagship_fits_one_and_eight_gpus_of_80_gib_and_takes_the_same_steps(name, gpus):
    """More GPUs need more memory each, for the buckets of gradients, and the same micro-batches: `test_distributed.py`."""
    recipe, found = of(name, num_gpus=gpus, gpu_memory=80 * GIB)
    assert found["samples_per_step"] == {"align.yaml": 256, "instruct.yaml": 128}[name]
    assert found["micro_batch"] * found["accumulation"] * gpus == found["samples_per_step"]
    assert found["memory"]["total"] < 80 * GIB
    assert 0 <= found["samples"] - {"align.yaml": 558_128, "instruct.yaml": 779_289}[name] < found["samples_per_step"]


def test_the_flagship_has_the_parameters_of_its_backbones():
    """Qwen2-1.5B has 1,543,714,304 with its tied head counted once, CLIP-L/14-336 303,507,456; 28 layers remember after 0, 4 and 9."""
    _, found = of("instruct.yaml", num_gpus=8, gpu_memory=80 * GIB)
    parameters = {part: count["total"] for part, count in found["parameters"].items()}
    assert parameters["language_model"] == 1_543_714_304
    assert parameters["encoder"] == 303_507_456
    assert parameters["projector"] == 1024 * 1536 + 1536 + 1536 * 1536 + 1536
    assert found["tokens_per_image"] == [144] and found["patches_per_image"] == 576
    assert all(count["trainable"] == count["total"] for count in found["parameters"].values())
    assert of("align.yaml", num_gpus=1, gpu_memory=80 * GIB)[1]["parameters"]["language_model"]["trainable"] == 0


def test_what_cannot_fit_is_refused_with_both_numbers_and_a_cure_that_fits():
    large = ("training.batch_size=32", "training.accumulation=4")
    with pytest.raises(
        ValueError, match=r"needs \d+\.\d GiB on every GPU .* 80.0 GiB are there; training.batch_size="
    ) as caught:
        of("instruct.yaml", *large, num_gpus=8, gpu_memory=80 * GIB)
    cure = [word for word in str(caught.value).split() if word.startswith("training.")]
    recipe, found = of("instruct.yaml", *cure, num_gpus=8, gpu_memory=80 * GIB)
    assert recipe.training.batch_size * recipe.training.accumulation == 128
    assert share(recipe.training, 8) == (found["micro_batch"], found["accumulation"])
    with pytest.raises(ValueError, match="24.0 GiB are there; a single sample still needs"):
        of("instruct.yaml", num_gpus=8, gpu_memory=24 * GIB)


@pytest.mark.parametrize(
    ("override", "tokens"),
    [("model.projector={type: mlp}", 576), ("model.resolution={mode: anyres}", 744), ("data.max_length=144", 144)],
)
def test_a_largest_image_that_no_sample_can_hold_is_refused_with_both_numbers(override, tokens):
    with pytest.raises(
        ValueError, match=rf"takes {tokens} vision tokens, and data.max_length is \d+.* raise data.max_length"
    ):
        of("align.yaml", override, num_gpus=8)
    assert of("align.yaml", override, f"data.max_length={tokens + 1}", num_gpus=8)[1]["tokens_per_image"] == [tokens]


def test_an_elastic_run_is_counted_at_every_rate(make_recipe, tmp_path):
    flops = dry_run(make_recipe("training.tokens_per_image=[36, 4]"), beside=tmp_path)["prefill_flops"]
    assert list(flops) == ["36", "4"] and flops["36"] > flops["4"]
    with pytest.raises(ValueError, match="names 49"):
        dry_run(make_recipe("training.tokens_per_image=[49]"), beside=tmp_path)


def test_a_dry_run_counts_what_training_would_train(make_recipe, tmp_path):
    recipe = make_recipe()
    found = dry_run(recipe, beside=tmp_path)
    model, _ = build_model(recipe)
    counted = freeze(model, recipe.training)
    added = model.config.text_config.vocab_size - AutoConfig.from_pretrained(recipe.model.text).vocab_size
    assert 0 <= added <= 3  # control tokens that the tokenizer lacks, which a dry run does not read
    counted["language_model"]["total"] -= added * model.config.text_config.hidden_size
    assert found["parameters"] == counted


def test_a_start_model_is_counted_by_its_own_config(make_recipe, tmp_path):
    start = tmp_path / "start"
    model, processor = build_model(make_recipe())
    model.save_pretrained(start)
    found = dry_run(make_recipe(f"model.checkpoint={start}"), beside=tmp_path)
    assert found["configs"] == {"checkpoint": str(start)}
    assert sum(part["total"] for part in found["parameters"].values()) == model.num_parameters()


def test_a_config_that_is_not_at_hand_is_refused_by_name(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"config of nobody/nothing is not at hand.*configs/nobody/nothing"):
        dry_run(make_recipe("model.vision=nobody/nothing"), beside=tmp_path)
    recipe = make_recipe()
    absent = dataclasses.replace(recipe.model, checkpoint="runs/absent", vision=None, text=None)
    with pytest.raises(ValueError, match="runs/absent is not there, and no backbones are named"):
        dry_run(dataclasses.replace(recipe, model=absent), beside=tmp_path)


def test_any_resolution_is_counted_with_the_most_tiles(make_recipe, tmp_path):
    """LLaVA-NeXT's 672 x 672 canvas of four tiles: 12 x 12 tokens of the whole, and 24 rows of 24 tokens with a newline each."""
    room = "data.max_length=1024"
    _, found = of("align.yaml", "model.resolution={mode: anyres}", room)
    assert found["tokens_per_image"] == [144 + 24 * 25]
    assert (found["views_per_image"], found["patches_per_image"]) == (5, 5 * 576)
    plain = of("align.yaml", room)[1]
    assert found["memory"]["activations"] > plain["memory"]["activations"]
    assert found["prefill_flops"]["744"] > 4 * plain["prefill_flops"]["144"]

    recipe = make_recipe("model.resolution={mode: anyres}")
    model, processor = build_model(recipe)
    page = Image.new("RGB", (500, 500))
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    tokens = processor.encode(messages, [page]).input_ids.count(processor.image_token_id)
    assert dry_run(recipe, beside=tmp_path)["tokens_per_image"] == [tokens]
