"""The optimizer of a run: AdamW, and Muon for the matrices of the parts that name a rate for it.

Muon makes the update of a matrix orthogonal: every direction in which it may change moves equally far, however rarely data asks for it.
A module that starts at zero has few such directions at first, and AdamW lets the loudest of them lead (LOG.md has the difference).

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", as `torch.optim.Muon` computes it. Biases, norms, tables,
embeddings, convolutions and the output head are not hidden matrices and stay with AdamW, as its authors advise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vision_remember.training.recipe import TrainingSection

BETAS = (0.9, 0.98)
Members = Mapping[str, Iterable[tuple[str, nn.Parameter]]]
Group = dict[str, Any]


def build_optimizer(model: nn.Module, parts: Members, training: TrainingSection) -> torch.optim.Optimizer:
    """AdamW with two groups for each part, matrices, which decay, and the rest; Muon takes the hidden matrices of `muon_rates`.

    Args:
        model: With `requires_grad` set.
        parts: Its parameters by part, with their names.
        training: Rates and decay. Every group carries its `part`, and Muon's a `muon` in its name: `{"part": "refusion muon", "lr": 0.02}`.
    """
    hidden, adamw, muon = _hidden_matrices(model), list[Group](), list[Group]()
    for part, members in parts.items():
        trained = [parameter for _, parameter in members if parameter.requires_grad]
        if part in training.muon_rates:
            chosen = [parameter for parameter in trained if parameter in hidden]
            muon += _group(f"{part} muon", chosen, training.muon_rates[part], training.weight_decay)
            trained = [parameter for parameter in trained if parameter not in hidden]
        for is_matrix, decay in ((True, training.weight_decay), (False, 0.0)):
            chosen = [parameter for parameter in trained if (parameter.ndim > 1) == is_matrix]
            adamw += _group(part, chosen, training.learning_rates.get(part), decay)
    if not muon:
        return torch.optim.AdamW(adamw, betas=BETAS, fused=True)
    return MuonAndAdamW(torch.optim.Muon(muon), torch.optim.AdamW(adamw, betas=BETAS, fused=True) if adamw else None)


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that the Trainer, its schedule and a checkpoint see as one, with the groups and the state of both."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW | None) -> None:
        self.both = [optimizer for optimizer in (adamw, muon) if optimizer is not None]
        groups = [group for optimizer in self.both for group in optimizer.param_groups]
        super().__init__(groups, {"fused": True})  # AdamW's steps are counted where its parameters are
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, with new groups and a new state, which both optimizers then share."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        first = len(self.both[0].param_groups)
        for optimizer, groups in zip(self.both, (self.param_groups[:first], self.param_groups[first:]), strict=False):
            optimizer.param_groups, optimizer.state = groups, self.state  # no parameter is in both

    @torch.no_grad()
    def step(self, closure=None) -> Tensor | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with Float32OnCPU():
            for optimizer in self.both:
                optimizer.step()
        return loss


class Float32OnCPU(TorchFunctionMode):
    """Tensors on a CPU that were to become bfloat16, as `torch.optim.Muon` computes in, become float32 where that is many times as fast."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.bfloat16 and args[0].is_cpu and emulates_bfloat16():
            return args[0].float().clone()
        return func(*args, **(kwargs or {}))


def emulates_bfloat16() -> bool:
    """Whether the CPU has no instructions for bfloat16."""
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _group(part: str, parameters: list[nn.Parameter], rate: float | None, decay: float) -> list[Group]:
    """One group, or none of nothing."""
    return [{"params": parameters, "part": part, "lr": rate, "weight_decay": decay}] if parameters else []


def _hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear layers, without those of the output head, which may be the embeddings' own."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {module.weight for module in model.modules() if isinstance(module, nn.Linear) and module is not head}
