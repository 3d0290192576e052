"""The pretraining loop: it learns, and an interrupted run ends with the weights of an uninterrupted one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vision_remember.foundation.fit import Schedule, fit

SCHEDULE = Schedule(steps=6, learning_rate=1e-2, warmup=2, save_every=2)
MUON = replace(SCHEDULE, muon_rate=1e-2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.GELU())
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 1)])

    def forward(self, x):
        return self.layers[1](self.layers[0](self.first(x)))


def _run(folder: Path, schedule: Schedule, stop_at: int | None = None) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"model": Model()})
    seen = []

    def loss(step: int):
        if step == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=generator)
        value = (model["model"](x) - x.sum(-1, keepdim=True)).pow(2).mean()
        seen.append(value.item())
        return value, {}

    fit(model, loss, schedule, folder, "test")
    return model, seen


@pytest.mark.parametrize("schedule", [SCHEDULE, MUON], ids=["adamw", "muon"])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, schedule):
    whole, _ = _run(tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", schedule, stop_at=5)
    resumed, seen = _run(tmp_path / "cut", schedule)
    assert len(seen) == 2  # steps 4 and 5, after the checkpoint of step 4
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    shares = [SCHEDULE.share(step) for step in range(7)]
    assert shares[0] == pytest.approx(0.5) and max(shares) == shares[1] == 1
    assert shares[6] == pytest.approx(0.05)
    assert replace(SCHEDULE, steps=3, falls_until=6).share(3) == shares[3] > 0.1


def test_muon_trains_the_matrices_of_the_layers_and_adamw_the_rest():
    adamw, muon = MUON.optimizers(nn.ModuleDict({"model": Model()}))
    shapes = [[tuple(one.shape) for one in optimizer.param_groups[0]["params"]] for optimizer in (adamw, muon)]
    assert shapes == [[(8, 4), (8,), (8,), (1,)], [(8, 8), (1, 8)]]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="non-finite"):
        fit(model, lambda step: (model(torch.ones(1, 1)).sum() * float("nan"), {}), SCHEDULE, tmp_path, "test")
