"""Which parameter is trained by which optimizer, and that two of them behave as one."""

import copy

import pytest
import torch
from torch import nn

from vision_remember.training.optimizer import Float32OnCPU, MuonAndAdamW, build_optimizer
from vision_remember.training.recipe import TrainingSection


class Small(nn.Module):
    """A head of its own, an embedding, a table, a norm, and three hidden matrices, one of them frozen."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)
        self.one, self.two, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(4, 4))
        self.frozen.requires_grad_(False)

    def get_output_embeddings(self):
        return self.head

    def parts(self):
        members = list(self.named_parameters())
        return {
            "language_model": [(name, p) for name, p in members if "two" not in name and "table" not in name],
            "refusion": [(name, p) for name, p in members if "two" in name or "table" in name],
        }

    def forward(self, ids):
        return self.head(self.two(torch.tanh(self.frozen(self.one(self.norm(self.embed(ids)))))) @ self.table)


def section(**muon: float) -> TrainingSection:
    rates = {"language_model": 0.01, "refusion": 0.02}
    return TrainingSection(
        trainable=("language_model", "refusion"),
        learning_rates=rates,
        muon_rates=muon,
        weight_decay=0.1,
        steps=1,
        batch_size=1,
    )


def groups(model, **muon: float) -> dict[str, tuple[str, float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["part"], group["lr"], group["weight_decay"])
        for group in build_optimizer(model, model.parts(), section(**muon)).param_groups
        for parameter in group["params"]
    }


def test_without_a_rate_for_muon_all_is_adamw():
    model = Small()
    assert isinstance(build_optimizer(model, model.parts(), section()), torch.optim.AdamW)
    rates = groups(model)
    assert rates["one.weight"] == ("language_model", 0.01, 0.1) and rates["one.bias"] == ("language_model", 0.01, 0.0)
    assert "frozen.weight" not in rates


def test_muon_takes_the_hidden_matrices_of_its_parts_and_nothing_else():
    rates = groups(Small(), refusion=0.3)
    assert [name for name, (part, *_) in rates.items() if "muon" in part] == ["two.weight"]
    assert rates["two.weight"] == ("refusion muon", 0.3, 0.1) and rates["table"] == ("refusion", 0.02, 0.1)
    both = groups(Small(), refusion=0.3, language_model=0.2)
    assert {name for name, (part, *_) in both.items() if "muon" in part} == {"one.weight", "two.weight"}


def test_the_matrices_of_muon_may_be_all_there_is():
    model = nn.Linear(3, 3, bias=False)
    optimizer = build_optimizer(
        model,
        {"projector": [("weight", model.weight)]},
        TrainingSection(
            trainable=("projector",),
            learning_rates={"projector": 0.1},
            muon_rates={"projector": 0.1},
            steps=1,
            batch_size=1,
        ),
    )
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize("steps", [1, 4])
def test_both_step_as_each_would_alone_under_one_schedule(steps):
    torch.manual_seed(0)
    model = Small()
    other = copy.deepcopy(model)
    both = build_optimizer(model, model.parts(), section(refusion=0.3))
    alone = [
        torch.optim.Muon([other.two.weight], lr=0.3, weight_decay=0.1),
        torch.optim.AdamW(
            [
                {"params": [other.embed.weight, other.head.weight, other.one.weight], "lr": 0.01, "weight_decay": 0.1},
                {
                    "params": [other.norm.weight, other.norm.bias, other.one.bias, other.head.bias],
                    "lr": 0.01,
                    "weight_decay": 0,
                },
                {"params": [other.table], "lr": 0.02, "weight_decay": 0.1},
                {"params": [other.two.bias], "lr": 0.02, "weight_decay": 0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(x, lambda step: 1 / (step + 1)) for x in (both, *alone)]
    for step in range(steps):
        for net, optimizers in ((model, [both]), (other, alone)):
            net.zero_grad()
            net(torch.tensor([step, 4])).square().sum().backward()
            with Float32OnCPU():
                for optimizer in optimizers:
                    optimizer.step()
        for schedule in schedules:
            schedule.step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_after_loading_a_state_both_follow_the_groups_that_a_schedule_sees():
    model = Small()
    optimizer = build_optimizer(model, model.parts(), section(refusion=0.3))
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does when it takes an optimizer over
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(optimizer.state) == {p for p in model.parameters() if p.grad is not None}


def test_a_closure_is_called_once_with_gradients():
    model = Small()
    optimizer = build_optimizer(model, model.parts(), section(refusion=0.3))
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = model(torch.tensor([1])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad and calls == [True]


@pytest.mark.parametrize("is_emulated", [True, False])
def test_where_bfloat16_is_emulated_muon_computes_in_float32_and_leaves_gradients_alone(monkeypatch, is_emulated):
    monkeypatch.setattr("vision_remember.training.optimizer.emulates_bfloat16", lambda: is_emulated)
    matrix = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    matrix.grad = gradient = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
    before = gradient.clone()
    muon = torch.optim.Muon([matrix], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    MuonAndAdamW(muon, None).step()
    update = matrix.detach()
    assert torch.equal(update.float().double(), update)
    assert torch.equal(update.bfloat16().double(), update) != is_emulated
    assert torch.equal(matrix.grad, before)
