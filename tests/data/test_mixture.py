"""A mixture is decided by its seed: each sample as often as its weight says, in an order no loader can change."""

from collections import Counter
from collections.abc import Sequence

import pytest

from vision_remember.data.mixture import Mixture, Part
from vision_remember.data.schema import DataError


class Numbers(Sequence):
    """A data set of labelled numbers that counts how often it is read."""

    def __init__(self, name: str, length: int):
        self.name, self.length, self.num_reads = name, length, 0

    @property
    def fingerprint(self):
        return self.name

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.num_reads += 1
        return f"{self.name}{range(self.length)[index]}"


def counts(mixture, name):
    return Counter(one for one in mixture if one.startswith(name))


def test_at_weight_one_every_sample_comes_exactly_once_in_shuffled_order():
    parts = [Part(samples=Numbers("a", 30)), Part(samples=Numbers("b", 20))]
    mixture = Mixture(parts, seed=0)
    assert parts[0].samples.num_reads == 0, "building a mixture reads no sample"
    seen = list(mixture)
    assert len(seen) == len(mixture) == 50 == len(set(seen))
    assert seen != sorted(seen) and mixture[-1] == seen[-1] and mixture[3:6] == seen[3:6]
    with pytest.raises(IndexError):
        mixture[50]


def test_the_seed_and_the_epoch_alone_decide_the_order():
    def order(seed, epoch):
        return list(Mixture([Part(samples=Numbers("a", 40), weight=0.5)], seed=seed).at_epoch(epoch))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("weight", "least", "most", "total"), [(2, 2, 2, 20), (0.5, 0, 1, 5), (2.3, 2, 3, 23), (1, 1, 1, 10)]
)
def test_a_weight_is_the_number_of_times_a_sample_comes(weight, least, most, total):
    mixture = Mixture([Part(samples=Numbers("a", 10), weight=weight), Part(samples=Numbers("b", 4))], seed=1)
    times = [counts(mixture, "a")[f"a{number}"] for number in range(10)]
    assert min(times) >= least and max(times) <= most and sum(times) == total
    assert sum(counts(mixture, "b").values()) == 4


def test_a_limit_keeps_the_same_samples_in_every_epoch_and_comes_before_the_weight():
    mixture = Mixture([Part(samples=Numbers("a", 100), limit=7, weight=2)], seed=3)
    assert len(mixture) == 14
    assert counts(mixture, "a") == counts(mixture.at_epoch(5), "a")
    assert len(Mixture([Part(samples=Numbers("a", 3), limit=7)], seed=0)) == 3


def test_the_fingerprint_follows_data_seed_weight_and_limit_but_not_the_epoch():
    def fingerprint(name="a", seed=0, epoch=0, **options):
        return Mixture([Part(samples=Numbers(name, 9), **options)], seed=seed, epoch=epoch).fingerprint

    assert fingerprint() == fingerprint(epoch=4)
    assert len({fingerprint(), fingerprint("b"), fingerprint(seed=1), fingerprint(weight=2), fingerprint(limit=2)}) == 5


@pytest.mark.parametrize("options", [{"weight": 0}, {"weight": -1}, {"weight": float("nan")}, {"limit": 0}])
def test_weights_and_limits_that_mean_nothing_are_refused(options):
    with pytest.raises(DataError, match="write a number"):
        Part(samples=Numbers("a", 3), **options)


def test_a_mixture_without_samples_is_refused():
    with pytest.raises(DataError, match="no samples"):
        Mixture([Part(samples=Numbers("a", 1), weight=0.01)], seed=0)
    with pytest.raises(DataError, match="no samples"):
        Mixture([], seed=0)
