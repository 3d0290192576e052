"""The pretraining loop: it learns, and an interrupted run ends with the weights of an uninterrupted one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vision_remember.foundation.fit import Schedule, fit

SCHEDULE = Schedule(steps=6, learning_rate=1e-2, warmup=2, save_every=2)


def _run(folder: Path, stop_at: int | None = None) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    seen = []

    def loss(step: int):
        if step == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=generator)
        value = (model(x) - x.sum(-1, keepdim=True)).pow(2).mean()
        seen.append(value.item())
        return value, {}

    fit(model, loss, SCHEDULE, folder, "test")
    return model, seen


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    whole, _ = _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", stop_at=5)
    resumed, seen = _run(tmp_path / "cut")
    assert len(seen) == 2  # steps 4 and 5, after the checkpoint of step 4
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    rates = [SCHEDULE.rate(step) for step in range(7)]
    assert rates[0] == pytest.approx(0.005) and max(rates) == rates[1] == pytest.approx(0.01)
    assert rates[6] == pytest.approx(0.0005)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="non-finite"):
        fit(model, lambda step: (model(torch.ones(1, 1)).sum() * float("nan"), {}), SCHEDULE, tmp_path, "test")
