"""What a causal LM does around its decoder, by its own code: whether re-fusion can work in it, and how it finishes its logits.

Families differ after their head (Gemma caps its logits, Granite and Cohere scale them). Instead of a list of families, the LM's own class
is built without weights, its decoder and head are replaced by modules that hand their input on, and its own `forward` does the rest.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING


def check_causal_lm(text_config: Any) -> None:
    """Refuse a language model between whose layers re-fusion cannot work, before any weight is loaded.

    Args:
        text_config: Of a model that `AutoModelForCausalLM` knows.

    Raises:
        ValueError: Names the family and the reason.
    """
    kind = text_config.model_type
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{kind} is no causal LM that transformers knows; use another language model")
    model_class = AutoModelForCausalLM._model_mapping[type(text_config)]
    if model_class._is_stateful:
        raise ValueError(
            f"{kind} has layers with a recurrent state, which padding and images would disturb; use an LM of attention alone"
        )
    if not model_class._supports_attention_backend:
        raise ValueError(
            f"{kind} passes no keywords down to its layers (_supports_attention_backend is False), so re-fusion cannot reach them; use "
            "another LM"
        )
    model = _without_weights(text_config)
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError(f"{kind} has a {type(head).__name__} for a head, not one linear layer; use another LM")
    decoder = model.get_decoder()
    if decoder is model or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ValueError(f"{kind} keeps no list of decoder layers (`layers`); use another LM")
    if model.config.tie_word_embeddings and not hasattr(decoder, "embed_tokens"):
        raise ValueError(f"{kind} ties its head to embeddings that are not `embed_tokens`; use another LM")
    _check_layers(decoder, kind)
    try:
        LogitRule(text_config)(torch.zeros(1, 1, text_config.vocab_size))
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{kind} cannot finish its logits apart from its decoder: {error}; use another LM") from error


@torch.no_grad()
def _check_layers(decoder: Any, kind: str) -> None:
    """Run the decoder on embeddings of three tokens and see what its layers are given."""
    given: list[tuple[bool, int]] = []

    def see(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        given.append(("refusion" in kwargs, hidden.ndim))

    for layer in decoder.layers:
        layer.register_forward_pre_hook(see, with_kwargs=True)
    # A mask that is ready, because deciding whether one is needed would read numbers that do not exist here.
    inputs = {
        "inputs_embeds": torch.zeros(1, 3, decoder.config.hidden_size, device="meta", dtype=torch.bfloat16),
        "attention_mask": torch.zeros(1, 1, 3, 3, device="meta", dtype=torch.bfloat16),
    }
    try:
        decoder(**inputs, use_cache=False, refusion=None)
    except (TypeError, RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{kind} does not run on embeddings alone, so it cannot see images: {error}") from error
    if len(given) != len(decoder.layers) or not all(is_told for is_told, _ in given):
        raise ValueError(
            f"{kind} passes no keywords down to its layers, so re-fusion cannot reach them; use another LM"
        )
    if any(ndim != 3 for _, ndim in given):
        raise ValueError(f"{kind} keeps several streams of hidden states, and re-fusion acts on one; use another LM")


class LogitRule:
    """What a causal LM's own `forward` does to the product of its head: nothing in most families, a soft cap or a scale in some.

    No module, because it has no weights, and the model that owns it should not list it among its parts.

    Attributes:
        has_bias: Whether the head of this family has a bias.
    """

    def __init__(self, text_config: Any) -> None:
        model = _without_weights(text_config)
        self.has_bias = model.get_output_embeddings().bias is not None
        setattr(model, model.base_model_prefix, _Given())
        model.set_output_embeddings(nn.Identity())
        if left := [name for name, _ in model.named_parameters()]:
            raise ValueError(
                f"{type(model).__name__} has weights beside its decoder and head ({left[0]}); use another LM"
            )
        self._model = model

    def __call__(self, logits: Tensor) -> Tensor:
        """Finished logits float[B, T, vocabulary] of those the head made."""
        return self._model(inputs_embeds=logits, use_cache=False).logits


class _Given(nn.Module):
    """Stands where a decoder was and hands its input on."""

    def forward(
        self, input_ids: None = None, *, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


def _without_weights(text_config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        # A copy, because building a model writes its dtype into the config.
        return AutoModelForCausalLM.from_config(copy.deepcopy(text_config), dtype=torch.bfloat16).eval()
