"""FLOPs, counted: the model's own code runs, and every matrix product and convolution in it is added up by its shapes.

What such an operation would compute is left out, so a model of 2 B parameters is counted in seconds on a laptop and needs no weights
(:func:`without_weights`); indices, masks and token counts are real, so methods whose work depends on them are counted as they run.
One multiply-add is two FLOPs. Attention counts as its two matrix products over all pairs, causal or not; what costs no matrix product
(norms, activations, softmax) is not counted. The formulas are those of torch's ``FlopCounterMode``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.modeling import VisionRememberForConditionalGeneration


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs of a call, whose results are made up: zeros of the right shape come out of every operation that is counted.

    Args:
        call: Runs modules on tensors of any device but meta, whose counts and masks their code could not read.
    """
    # In inference mode a linear does not show what it is made of, and torch has no formula for every fused attention kernel.
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _ShapesAlone() as counter:
        call()
    return counter.flops


def prefill_flops(model: VisionRememberForConditionalGeneration, inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of reading one prompt until its first answer token can be chosen: encoder, projector, re-fusion and decoder.

    Args:
        model: Trained, or built by :func:`without_weights`.
        inputs: What the processor makes of a prompt, or :func:`prompt_ids` with ``pixel_values`` or ``encoder_levels``.
    """
    return count_flops(lambda: model(**inputs, use_cache=True, logits_to_keep=1))


def without_weights(config: VisionRememberConfig) -> VisionRememberForConditionalGeneration:
    """The model of a config with a single zero behind every parameter: it takes no memory and can only be counted."""
    with torch.device("meta"):
        model = VisionRememberForConditionalGeneration(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(buffer, device="cpu"))
    model.tie_weights()  # a tied head is the embedding again
    return model.eval()


def prompt_ids(config: VisionRememberConfig, num_text_tokens: int, num_image_tokens: int | None = None) -> Tensor:
    """Token ids of a page and a question about it, in one user turn: ``long[1, V + num_text_tokens]``.

    Args:
        config: Of the model that will read it.
        num_text_tokens: Every token that is no vision token, the control tokens of the turn included.
        num_image_tokens: Vision tokens V; None: as many as the projector makes by itself.
    """
    header = [config.turn_start_token_id or 0, *[0] * config.user_header_length]
    vision = [config.image_token_id] * (num_image_tokens or config.token_grid.num_cells)
    question = [0] * (num_text_tokens - len(header) - 1)
    return torch.tensor([[*header, *vision, *question, config.turn_end_token_id or 0]])


class _ShapesAlone(TorchDispatchMode):
    """Counts the operations that torch has a formula for, gives back zeros in the shape of their result, and runs all others."""

    SKIPPED = {torch.ops.aten._softmax, torch.ops.aten._safe_softmax}  # not counted, but the slowest of the rest

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, operation = kwargs or {}, func.overloadpacket
        formula = flop_registry.get(operation)
        if formula is None and operation not in self.SKIPPED:
            return func(*args, **kwargs)
        device = next(x.device for x in args if isinstance(x, Tensor))
        shapes, options = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        out = func(*shapes, **options)
        if formula is not None:
            self.flops += formula(*shapes, **options, out_val=out)
        return tree_map_only(Tensor, lambda x: torch.zeros_like(x, device=device), out)
