import math
import time

import numpy as np
import pytest

from vision_remember.evaluation import bootstrap


def test_the_interval_of_a_mean_is_the_normal_one_for_many_pages() -> None:
    """For n independent right-or-wrong answers the bootstrap's spread is sqrt(p (1 - p) / n)."""
    pages = 2_000
    values = (np.arange(pages) % 10 < 7).astype(float)[:, None]
    means = bootstrap.resampled_means(values, np.ones(pages), key="test")[:, 0]
    spread = math.sqrt(0.7 * 0.3 / pages)
    assert means.mean() == pytest.approx(0.7, abs=4 * spread / math.sqrt(bootstrap.RESAMPLES))
    assert means.std() == pytest.approx(spread, rel=0.03)
    interval = bootstrap.interval(0.7, means)
    # A percentile end has a standard error of about 0.03 spreads at 10,000 resamples; 0.1 is three of them.
    assert interval.low == pytest.approx(0.7 - 1.96 * spread, abs=0.1 * spread)
    assert interval.high == pytest.approx(0.7 + 1.96 * spread, abs=0.1 * spread)


def test_a_resample_is_what_a_loop_over_its_pages_gives() -> None:
    rng = np.random.default_rng(1)
    sums, counts = rng.random((7, 2)), rng.integers(1, 5, size=7).astype(float)
    means = bootstrap.resampled_means(sums, counts, key="loop", resamples=300)
    generator = np.random.default_rng(_stream_seed("loop"))
    drawn = np.concatenate([generator.integers(7, size=(size, 7)) for size in (250, 50)])
    for row, pages in zip(means, drawn, strict=True):
        expected = [sum(sums[p, k] for p in pages) / sum(counts[p] for p in pages) for k in range(2)]
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_questions_of_one_page_are_drawn_together() -> None:
    """Ten equal questions on a page carry the information of one."""
    right = (np.arange(100) % 2).astype(float)
    alone = bootstrap.resampled_means(right[:, None], np.ones(100), key="same")
    together = bootstrap.resampled_means(10 * right[:, None], np.full(100, 10.0), key="same")
    np.testing.assert_allclose(alone, together, rtol=1e-12)


def test_equal_keys_draw_equal_pages_and_other_keys_others() -> None:
    sums, counts = np.arange(9.0)[:, None], np.ones(9)
    first, again, other = (bootstrap.resampled_means(sums, counts, key=key, resamples=50) for key in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("values", "t"), [([1.0, 2.0, 4.0], 4.303), ([3.0, 1.0, 2.0, 2.0, 5.0], 2.776)])
def test_the_interval_over_seeds_is_that_of_student(values, t) -> None:
    """`t` is the 97.5 percentile of Student's distribution, from its table."""
    weights = bootstrap.seed_weights(len(values))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    interval = bootstrap.interval(np.mean(values), weights @ np.array(values))
    half = t * np.std(values, ddof=1) / math.sqrt(len(values))
    # The percentile of 10,000 draws from so heavy a tail has a standard error of 3 %.
    assert interval.low == pytest.approx(np.mean(values) - half, abs=0.1 * half)
    assert interval.high == pytest.approx(np.mean(values) + half, abs=0.1 * half)


def test_one_seed_has_no_spread() -> None:
    assert np.array_equal(bootstrap.seed_weights(1, resamples=4), np.ones((4, 1)))


def test_a_ratio_has_no_finite_interval_where_the_denominator_vanishes() -> None:
    numerator, denominator = np.full(1000, 0.5), np.ones(1000)
    assert bootstrap.ratio_interval(numerator, denominator) == (0.5, 0.5)
    denominator[:20] = -0.1  # 2 % of the resamples: the ends still exist
    assert bootstrap.ratio_interval(numerator, denominator) == (0.5, 0.5)
    denominator[:30] = 0.0
    assert bootstrap.ratio_interval(numerator, denominator) is None


def test_thousands_of_pages_take_seconds() -> None:
    start = time.process_time()
    bootstrap.resampled_means(np.ones((2_000, 9)), np.ones(2_000), key="speed")
    assert time.process_time() - start < 10


def test_no_page_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="0 page"):
        bootstrap.resampled_means(np.empty((0, 1)), np.empty(0), key="none")


def _stream_seed(key: str) -> int:
    from zlib import crc32

    return crc32(key.encode())
