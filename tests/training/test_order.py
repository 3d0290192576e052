from collections import Counter

from vision_remember.training.order import SampleOrder


def numbers(order: SampleOrder) -> list[int]:
    return [order[position][1] for position in range(len(order))]


def test_every_sample_comes_once_per_epoch_and_epochs_differ(make_recipe):
    order = numbers(SampleOrder(make_recipe(), 36))
    epochs = [order[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed_and_not_on_the_model_or_the_length(make_recipe):
    first = numbers(SampleOrder(make_recipe(), 24))
    other_model = make_recipe("model.refusion={type: none}", "training.steps=50")
    assert numbers(SampleOrder(other_model, 12)) == first[:12]
    assert numbers(SampleOrder(make_recipe("seed=2"), 24)) != first


def test_limits_and_weights_shape_the_epoch(make_recipe, squares):
    recipe = make_recipe(f"data.sources=[{{path: {squares}, limit: 4, weight: 2}}, {{synthetic: {{count: 3}}}}]")
    order = SampleOrder(recipe, 11)
    assert order.epoch_length == 11
    counts = Counter(order[position] for position in range(11))
    assert sorted(counts.values()) == [1, 1, 1, 2, 2, 2, 2]


def test_the_fingerprint_changes_with_the_data(make_recipe):
    recipes = [
        make_recipe(),
        make_recipe("data.sources.0.limit=3"),
        make_recipe("data.sources=[{synthetic: {count: 12}}]"),
    ]
    assert len({SampleOrder(recipe, 12).fingerprint for recipe in recipes}) == 3
    assert SampleOrder(recipes[0], 12).fingerprint == SampleOrder(make_recipe(), 24).fingerprint


def test_keys_are_read_as_the_samples_they_name(make_recipe):
    order = SampleOrder(make_recipe(), 12)
    ids = {order.read(order[position]).id for position in range(12)}
    assert ids == {*(f"square-{number}" for number in range(11)), "text-alone"}
