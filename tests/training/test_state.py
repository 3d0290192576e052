import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from vision_remember.training import state
from vision_remember.training.optimizer import MuonAndAdamW


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head, self.frozen = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 4)
        self.head.weight = self.embed.weight
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)


def stepped(seed: int, *, with_muon: bool = False):
    torch.manual_seed(seed)
    model = Tied()
    if with_muon:
        optimizer = MuonAndAdamW(
            torch.optim.Muon([{"params": [model.frozen.weight]}]),
            torch.optim.AdamW([{"params": [model.embed.weight], "lr": 0.1}], fused=True),
        )
    else:
        optimizer = torch.optim.AdamW(
            [{"params": [model.embed.weight], "lr": 0.1}, {"params": [model.frozen.weight]}], fused=True
        )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for _ in range(seed):
        model.head(model.frozen(model.embed(torch.tensor([seed])))).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


@pytest.mark.parametrize("with_muon", [False, True])
def test_weights_moments_and_schedule_come_back_bit_for_bit(tmp_path, with_muon):
    model, optimizer, scheduler = stepped(3, with_muon=with_muon)
    state.write_state(tmp_path, model, optimizer, scheduler)
    other, other_optimizer, other_scheduler = stepped(1, with_muon=with_muon)
    state.read_weights(tmp_path, other)
    state.read_optimizer(tmp_path, other, other_optimizer, other_scheduler)
    for name, tensor in state.weights(model).items():
        assert torch.equal(tensor, state.weights(other)[name])
    assert other.head.weight is other.embed.weight
    for one, two in zip(optimizer.param_groups, other_optimizer.param_groups, strict=True):
        assert {**one, "params": None} == {**two, "params": None}
        assert optimizer.state[one["params"][0]]
        for mine, theirs in zip(one["params"], two["params"], strict=True):
            for key, value in optimizer.state[mine].items():
                assert torch.equal(value, other_optimizer.state[theirs][key]), key
    assert scheduler.get_last_lr() == other_scheduler.get_last_lr()


def test_tied_weights_are_stored_once_and_passing_buffers_not_at_all(tmp_path):
    assert set(state.weights(Tied())) == {"embed.weight", "frozen.weight", "frozen.bias", "kept"}


@pytest.mark.parametrize("damage", ["missing", "superfluous", "misshapen", "not finite"])
def test_weights_of_another_model_are_refused_by_name(tmp_path, damage):
    model, optimizer, scheduler = stepped(2)
    if damage == "not finite":
        model.frozen.weight.data[0, 0] = torch.nan
    state.write_state(tmp_path, model, optimizer, scheduler)
    if damage == "missing":
        model.extra = nn.Linear(1, 1)
    elif damage == "superfluous":
        del model.frozen
    elif damage == "misshapen":
        model.frozen = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="extra" if damage == "missing" else "frozen"):
        state.read_weights(tmp_path, model)


def test_every_generator_goes_on_where_it_stopped():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.normal(), torch.randn(3)
    saved = json.loads(json.dumps(state.rng_state()))
    expected = random.gauss(0, 1), random.random(), np.random.normal(), torch.randn(3).tolist()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    state.set_rng_state(saved)
    assert (random.gauss(0, 1), random.random(), np.random.normal(), torch.randn(3).tolist()) == expected
