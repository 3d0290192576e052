"""95 % intervals: pages are resampled within a family, and the mean over training seeds spreads as Student's t says.

The unit is the page, not the question: questions on one page succeed and fail together, so they are drawn together. Every row of a
comparison answered the same pages, so one draw of pages serves all rows (the resamples are *paired*) and all training seeds (pages and
seeds are crossed, not nested: drawing other pages for each seed would shrink the interval for no reason). Families keep their sizes: each
draws its own pages.

A resample of pages is a row of counts, how often each page was drawn; a mean over resampled pages is then one matrix product, and 10,000
resamples of thousands of pages take seconds.

Drawing a handful of seeds with replacement covers too little (with three of them the truth three times in four), so the weights of the
seeds are drawn such that, pages aside, the percentiles are the ends of Student's interval for a mean of that many values.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13 (percentile interval); Student, "The probable error of a
mean" (1908).
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_BLOCK = 250

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the 2.5 and 97.5 percentiles of its resamples."""

    value: float
    low: float
    high: float


def resampled_means(sums: Floats, counts: Floats, *, key: str, resamples: int = RESAMPLES) -> Floats:
    """Return the means of resampled pages, one column per quantity, with the same pages drawn for every column.

    Args:
        sums: float[U, K], the sum over each of U pages of K quantities (such as right answers of K models).
        counts: float[U], the number of questions of each page.
        key: names the stream of draws: equal keys and U draw the same pages, whoever asks.
        resamples: number of resamples R.

    Returns:
        float[R, K], sum over drawn pages / number of drawn questions.
    """
    num_pages = len(counts)
    if num_pages == 0 or sums.shape[0] != num_pages:
        raise ValueError(
            f"bootstrap of {key}: {sums.shape[0]} page sums, {num_pages} page counts; both must agree and be at least 1"
        )
    generator = np.random.default_rng(crc32(key.encode()))
    columns = np.column_stack([sums, counts])
    means = np.empty((resamples, sums.shape[1]))
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        totals = _draws(generator, size, num_pages) @ columns
        means[start : start + size] = totals[:, :-1] / totals[:, -1:]
    return means


def seed_weights(num_seeds: int, *, key: str = "seeds", resamples: int = RESAMPLES) -> Floats:
    """Return the weight of each training seed in each resample, float[R, S] with rows that sum to 1.

    A mean of values x weighted so is mean(x) + T * std(x) / sqrt(S), T of Student's t distribution with S - 1 degrees of freedom.
    """
    if num_seeds == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng(crc32(key.encode()))
    normal = generator.standard_normal((resamples, num_seeds))
    spread = np.sqrt(generator.chisquare(num_seeds - 1, (resamples, 1)) * num_seeds)
    return (normal - normal.mean(axis=1, keepdims=True)) / spread + 1 / num_seeds


def interval(value: float, resampled: Floats) -> Interval:
    """Return the percentile interval of a value from its resamples float[R]."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value=float(value), low=float(low), high=float(high))


def ratio_interval(numerator: Floats, denominator: Floats) -> tuple[float, float] | None:
    """Return the percentile interval of numerator / denominator, or None where the denominator is too often not positive.

    A resample whose denominator is zero or negative says nothing about the ratio; it counts as the worst case at *both* ends. Where that
    happens in more than 2.5 % of the resamples, no finite interval exists.

    Args:
        numerator: float[R].
        denominator: float[R], of the same resamples.
    """
    defined = denominator > 0
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=defined)
    low = np.quantile(np.where(defined, ratio, -np.inf), 0.025, method="lower")
    high = np.quantile(np.where(defined, ratio, np.inf), 0.975, method="higher")
    return (float(low), float(high)) if np.isfinite(low) and np.isfinite(high) else None


def _draws(generator: np.random.Generator, size: int, num_units: int) -> Floats:
    """Return float[size, num_units]: how often each unit was drawn in `num_units` draws with replacement."""
    drawn = generator.integers(num_units, size=(size, num_units)) + np.arange(size)[:, None] * num_units
    return np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units).astype(np.float64)
