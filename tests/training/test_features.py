import shutil

import pytest
import torch
from PIL import Image

from tests.tiny import save_language_model
from vision_remember.data.schema import DataError
from vision_remember.training.batches import Batches
from vision_remember.training.features import FeatureCache
from vision_remember.training.order import SampleOrder
from vision_remember.training.start import build_model


@pytest.fixture
def run(make_recipe, tmp_path):
    def build(*overrides: str):
        recipe = make_recipe(*overrides)
        model, processor = build_model(recipe)
        return model, Batches(SampleOrder(recipe, 12), processor, recipe, tmp_path)

    return build


def fill(cache: FeatureCache, model, batches: Batches, read=None):
    return cache.fill(
        model, batches.processor, batches.keys(), read or batches.order.read, on_bad_sample=batches.set_aside
    )


def test_a_batch_with_features_is_the_batch_with_pixels(run):
    model, batches = run()
    keys = list(batches.keys())[:4]
    plain = batches.collate(keys)
    batches.use(fill(FeatureCache(), model, batches))
    cached = batches.collate(keys)
    assert "pixel_values" not in cached
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(plain[name], cached[name])
    with torch.no_grad():
        assert torch.allclose(model.encode(plain["pixel_values"]), cached["encoder_levels"], atol=1e-5)
        assert torch.allclose(model(**plain).loss, model(**cached).loss, atol=1e-5)


def test_a_second_run_over_the_same_data_draws_and_encodes_nothing(run, monkeypatch):
    cache = FeatureCache()
    model, batches = run()
    fill(cache, model, batches)
    other, other_batches = run("model.projector={type: mlp}", "model.refusion={type: remember, layers: [1]}")
    monkeypatch.setattr(type(other), "encode", lambda *_: pytest.fail("encoded again"))
    features = fill(cache, other, other_batches, read=lambda key: pytest.fail(f"read {key} again"))
    other_batches.use(features)
    assert len(other_batches.collate(list(other_batches.keys()))["encoder_levels"]) == 11


def test_a_run_that_reads_other_levels_finds_them_in_its_own_order(run):
    cache = FeatureCache()
    model, batches = run("model.refusion={type: none}", "model.projector={type: avg_pool, level: 1}")
    fill(cache, model, batches)
    other, other_batches = run("model.refusion={type: remember, layers: [0], levels: [2, 0]}")
    features = fill(cache, other, other_batches)
    key = next(key for key in other_batches.keys() if len(features.of(key)))
    (image,) = other_batches.order.read(key).load_images()
    with torch.no_grad():
        expected = other.encode(other_batches.processor.pixels([image]))
    assert torch.allclose(features.of(key), expected, atol=1e-5)


def test_crops_of_an_enlarged_page_are_kept_apart_from_the_page_alone(run, tmp_path):
    cache = FeatureCache()
    model, batches = run("model.refusion={type: none}")
    fill(cache, model, batches)
    deep = save_language_model(tmp_path / "deep", num_layers=4)
    other, other_batches = run("model.refusion={type: deepstack_hd}", f"model.text={deep}")
    keys = list(other_batches.keys())[:4]
    plain = other_batches.collate(keys)
    assert plain["pixel_values"].shape[1:] == (5, 3, 48, 48)
    other_batches.use(fill(cache, other, other_batches))
    cached = other_batches.collate(keys)
    with torch.no_grad():
        assert torch.allclose(other.encode(plain["pixel_values"]), cached["encoder_levels"], atol=1e-5)
        assert torch.allclose(other(**plain).loss, other(**cached).loss, atol=1e-5)


def test_another_encoder_gets_its_own_features(run):
    cache = FeatureCache()
    model, batches = run()
    before = fill(cache, model, batches)
    key = next(iter(batches.keys()))
    with torch.no_grad():
        for _, parameter in model.parts()["encoder"]:
            parameter.mul_(1.5)
    after = fill(cache, model, batches)
    assert not torch.equal(before.of(key), after.of(key))


def test_equal_images_are_encoded_once(run, monkeypatch):
    model, batches = run()
    encoded = []
    encode = type(model).encode
    monkeypatch.setattr(
        type(model), "encode", lambda self, pixels, _: encoded.append(len(pixels)) or encode(self, pixels)
    )
    fill(FeatureCache(), model, batches)
    assert sum(encoded) == 6  # eleven squares of six colours


def test_a_bad_image_stops_the_fill_with_its_name(run, squares):
    model, batches = run()

    def read(key):
        sample = batches.order.read(key)
        return (
            sample
            if sample.id != "square-3"
            else type(sample)(id="square-3", images=(b"no image",), turns=sample.turns, source="x")
        )

    with pytest.raises(DataError, match="square-3"):
        fill(FeatureCache(), model, batches, read=read)


def test_a_batch_of_any_resolution_is_the_same_with_features(run, squares, tmp_path):
    shapes = tmp_path / "shapes"
    shutil.copytree(squares, shapes)
    for number in range(11):
        Image.new("RGB", (20 + 40 * (number % 3), 30 + 25 * (number % 4)), (9 * number, 0, 0)).save(
            shapes / f"{number}.png"
        )
    model, batches = run("model.resolution={mode: anyres}", f"data.sources=[{{path: {shapes}}}]")
    keys = list(batches.keys())
    plain = batches.collate(keys)
    assert len({batches.processor.tiling.layout(size).num_views for size in plain["image_sizes"].tolist()}) > 1
    batches.use(fill(FeatureCache(), model, batches))
    cached = batches.collate(keys)
    assert "pixel_values" not in cached
    for name in ("input_ids", "attention_mask", "labels", "image_sizes"):
        assert torch.equal(plain[name], cached[name])
    with torch.no_grad():
        levels = model.encode(plain["pixel_values"], plain["image_sizes"])
        assert torch.allclose(levels, cached["encoder_levels"], atol=1e-5)
        assert torch.allclose(model(**plain).loss, model(**cached).loss, atol=1e-5)
    text_alone = [key for key in keys if not batches.order.read(key).images]
    assert text_alone and "image_sizes" not in batches.collate(text_alone)


def test_one_set_of_features_serves_every_rate(run):
    model, batches = run("training.tokens_per_image=[9, 4]")
    key = next(key for key in batches.keys() if batches.order.read(key).images)
    plain = {rate: batches.collate([key], rate) for rate in (9, 4)}
    batches.use(fill(FeatureCache(), model, batches))
    for rate, expected in plain.items():
        cached = batches.collate([key], rate)
        assert torch.equal(cached["input_ids"], expected["input_ids"]) and cached["tokens_per_image"] == rate
        with torch.no_grad():
            assert torch.allclose(model(**cached).loss, model(**expected).loss, atol=1e-5)


def test_what_is_kept_lies_together(run, monkeypatch):
    """Copies strewn between what the encoder allocates and frees would hold five times their size."""
    model, batches = run()
    cache = FeatureCache()
    fill(cache, model, batches)
    kept = [level for levels in cache._levels.values() for level in levels.values()]
    assert len(kept) > 2 and len({level.untyped_storage().data_ptr() for level in kept}) == 1
    monkeypatch.setattr("vision_remember.training.features.SLAB", 2 * kept[0].numel())
    small = FeatureCache()
    fill(small, model, batches)
    slabs = [level.untyped_storage().data_ptr() for levels in small._levels.values() for level in levels.values()]
    assert len(set(slabs)) == -(-len(kept) // 2)
    for image, levels in cache._levels.items():
        assert all(torch.equal(small._levels[image][level], features) for level, features in levels.items())
