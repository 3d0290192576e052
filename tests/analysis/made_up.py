"""Made-up measurements, for tests of figures and words that need numbers but no model."""

import dataclasses
from typing import Any

import numpy as np

from vision_remember.analysis.measurement import DETAIL, MEAN, Characters, Measurement
from vision_remember.analysis.recording import AS_IT_IS, MUTED
from vision_remember.evaluation.bootstrap import Floats, Interval
from vision_remember.geometry import Grid

TOKENS = Grid(4, 4)


def curve(*values: float) -> list[Interval]:
    return [Interval(value=value, low=value - 0.05, high=value + 0.05) for value in values]


def draws(*values: float, spread: float = 0.05) -> list[Floats]:
    """Resamples around each value, the same ones for all."""
    return [np.linspace(value - spread, value + spread, 1001) for value in values]


def measured(label: str = "one", tokens: Grid = TOKENS, **changes: Any) -> Measurement:
    """A model of two decoder layers with remember, some of its facts changed."""
    found = Characters(
        encoder=curve(0.99)[0],
        chance=curve(0.05)[0],
        read={AS_IT_IS: curve(0.3, 0.6), MUTED: curve(0.3, 0.2)},
        muting=curve(0.0, 0.4),
        resampled=draws(0.3, 0.6),
        lost=curve(0.69)[0],
        num_fitted=12,
        num_held_out=4,
        num_characters=100,
    )
    plain = Measurement(
        label=label,
        refusion="remember",
        insertions=(-1, 0),
        is_guided=True,
        patch_grid=Grid(12, 12),
        token_grid=tokens,
        num_layers=2,
        level=5,
        share={AS_IT_IS: curve(0.4), MUTED: curve(0.3)},
        density={AS_IT_IS: curve(1.2), MUTED: curve(0.9)},
        similarity={AS_IT_IS: {MEAN: [0.9, 0.5], DETAIL: [None, 0.2]}, MUTED: {MEAN: [0.9, 0.4], DETAIL: [None, None]}},
        characters=found,
        looks={},
        margin=0,
        ink={},
    )
    return dataclasses.replace(plain, **changes)
