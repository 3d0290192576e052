"""Assembly: a pretrained vision encoder and a pretrained causal LM become one model.

The checks that need no weights come first: the kind of encoder and of LM, options, levels, layers. Then the backbones' weights are copied
as they are, and the text path is compared with the language model's own, so that a family that does more around its decoder than its
own `forward` shows is refused instead of silently changed.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from vision_remember.model.causal_lm import check_causal_lm
from vision_remember.model.chat import ChatTemplate, load_tokenizer
from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.embedded import model_path
from vision_remember.model.encoder import count_prefix_tokens

SAME_LOGITS = 1e-4  # float32 rounding of one more column block in the head; another rule for logits differs by far more
SET_APART = 1 + 2**-6  # so much that no rounding to bfloat16 takes it back
EMBEDDED_AT_ONCE = 8192  # rows of the embedding that are measured together

Model = TypeVar("Model", bound=PreTrainedModel)


def assemble(
    model_class: type[Model],
    vision: str,
    text: str,
    *,
    projector: dict | None,
    refusion: dict | None,
    resolution: dict | None,
    seed: int,
) -> Model:
    """Join two backbones.

    Args:
        model_class: `VisionRememberForConditionalGeneration`.
        vision: Folder, hub id or `embedded/NAME` of a vision encoder, alone or inside a CLIP-like model.
        text: The same of a causal LM with its tokenizer.
        projector: `{"type": ..., options}`; None: LLaVA's `mlp`.
        refusion: `{"type": ..., options}`; None: `none`.
        resolution: Fields of `tiling.Resolution`; None: `{"mode": "pad"}`.
        seed: Of projector and re-fusion. One seed gives a projector the same start beside every re-fusion method.

    Returns:
        A float32 model in eval mode. The image token (and the chat tokens the tokenizer lacks) have been added; embeddings that did not
        exist are the mean of the others, and the image token's is set apart from those of the chat tokens.

    Raises:
        ValueError: The backbones cannot be joined; says why.
    """
    vision, text = model_path(vision), model_path(text)
    config, template = _joint_config(vision, text, projector, refusion, resolution)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
        encoder = _load(AutoModel, vision, config.vision_config, may_lack=("pooler.",))
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    causal_lm = _load(AutoModelForCausalLM, text, AutoConfig.from_pretrained(text)).eval()
    _copy_language_model(model, causal_lm)
    config.vision_token_rms = _token_rms(causal_lm)
    _check_text_path(model, causal_lm)
    _set_placeholder_apart(model)
    eos = causal_lm.generation_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=list(dict.fromkeys([template.end_id, *(eos if isinstance(eos, list) else [eos] if eos else [])])),
        pad_token_id=template.pad_id,
        suppress_tokens=[config.image_token_id],  # a generated placeholder would have no image
    )
    return model


@torch.no_grad()
def _token_rms(causal_lm: PreTrainedModel) -> float:
    """The usual size of a text embedding, which vision tokens then keep (our choice; LLaVA does not rescale).

    Encoders leave features far larger than a decoder's embeddings. What its layers add to such a token is lost beside it, so the decoder
    reads the token but cannot work on it: measured on the embedded pair, 43 times too large and no question answered. The size is that of
    what the embedding layer gives, because some families scale inside it (Gemma), and not that of its weights.
    """
    embed = causal_lm.get_input_embeddings()
    ids = torch.arange(embed.weight.shape[0])
    sizes = [embed(some).float().pow(2).mean(dim=1).sqrt() for some in ids.split(EMBEDDED_AT_ONCE)]
    return torch.cat(sizes).median().item()


def _joint_config(
    vision: str, text: str, projector: dict | None, refusion: dict | None, resolution: dict | None
) -> tuple[VisionRememberConfig, ChatTemplate]:
    vision_config = AutoConfig.from_pretrained(vision)
    if "vision_config" in vision_config.sub_configs:  # the vision half of a CLIP
        vision_config = vision_config.vision_config
    num_prefix_tokens = count_prefix_tokens(vision_config)
    text_config = AutoConfig.from_pretrained(text)
    if text_config.sub_configs:
        raise ValueError(
            f"{text} is a model of several parts ({', '.join(text_config.sub_configs)}); give a plain causal LM"
        )
    check_causal_lm(text_config)
    tokenizer = load_tokenizer(text)
    template = ChatTemplate(tokenizer, num_image_tokens=1)
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    vision_config.dtype = text_config.dtype = torch.float32
    config = VisionRememberConfig(
        vision_config=vision_config,
        text_config=text_config,
        projector=projector,
        refusion=refusion,
        resolution=resolution,
        image_token_id=template.image_token_id,
        turn_start_token_id=template.start_id,
        turn_end_token_id=template.end_id,
        user_header_length=len(template.encode_text("user\n")),
        num_prefix_tokens=num_prefix_tokens,
        dtype="float32",
    )
    return config, template


def _load(auto_class: Any, name: str, config: PreTrainedConfig, may_lack: tuple[str, ...] = ()) -> PreTrainedModel:
    """Load a backbone in float32 from safetensors; weights that are missing are an error, except for an encoder's pooler, never read."""
    model, info = auto_class.from_pretrained(
        name, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(key for key in map(str, info["missing_keys"]) if not key.startswith(may_lack)):
        raise ValueError(f"{name} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]}")
    return model


@torch.no_grad()
def _copy_language_model(model: PreTrainedModel, causal_lm: PreTrainedModel) -> None:
    decoder, head = causal_lm.get_decoder(), causal_lm.get_output_embeddings()
    target = model.model.language_model
    vocabulary = target.get_input_embeddings().weight.shape[0]
    old_embedding = decoder.get_input_embeddings().weight
    weights = {
        name: _grown(weight, vocabulary) if weight.data_ptr() == old_embedding.data_ptr() else weight
        for name, weight in decoder.state_dict().items()
    }
    left, unknown = target.load_state_dict(weights, strict=False)
    if unknown or any("refusion" not in name for name in left):
        raise ValueError(f"weights of {type(decoder).__name__} do not fit: missing {left[:3]}, left over {unknown[:3]}")
    model.lm_head.load_state_dict({name: _grown(weight, vocabulary) for name, weight in head.state_dict().items()})
    model.tie_weights()


def _grown(weight: Tensor, num_rows: int) -> Tensor:
    """The matrix, or bias, with rows appended up to `num_rows`, each the mean of the rows there were."""
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(num_rows - len(weight), *weight.shape[1:])])


@torch.no_grad()
def _set_placeholder_apart(model: PreTrainedModel) -> None:
    """In `inputs_embeds` a placeholder is known by its embedding, whose values vision tokens always replace: no chat token may share it."""
    config, embedding = model.config, model.get_input_embeddings().weight
    turns = embedding[[config.turn_start_token_id, config.turn_end_token_id]]
    if (embedding[config.image_token_id] == turns).all(-1).any():
        embedding[config.image_token_id] = embedding.mean(0) * SET_APART


@torch.no_grad()
def _check_text_path(model: PreTrainedModel, causal_lm: PreTrainedModel) -> None:
    last = causal_lm.get_input_embeddings().weight.shape[0] - 1
    ids = torch.tensor([model.model.config.turn_start_token_id, *range(7)]).clamp(max=last)
    ids = ids[ids != model.config.image_token_id][None]
    expected = causal_lm(ids).logits
    given = model(ids).logits[..., : expected.shape[-1]]
    if not torch.allclose(given, expected, rtol=SAME_LOGITS, atol=SAME_LOGITS):
        raise ValueError(
            f"{type(causal_lm).__name__} computes its logits differently (by {float((given - expected).abs().max()):.3g}) inside "
            "and outside this package; use another language model"
        )
