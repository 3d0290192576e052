"""Tiny random backbones of every family that the package promises: configs made on the spot, saved as ordinary folders."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SiglipConfig,
    SiglipVisionConfig,
    SmolLM3Config,
    ViTConfig,
)

from tests.tiny import IMAGE_SIZE, build_tokenizer

WINDOW = 12  # shorter than a prompt, so that sliding layers do slide; long enough that an answer still sees the image
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}
ENCODERS: dict[str, tuple[PreTrainedConfig, int]] = {  # with the tokens before the patches
    "clip": (CLIPVisionConfig(**VISION), 1),
    "siglip": (SiglipVisionConfig(**VISION), 0),
    # A fixed-resolution SigLIP2 is published as a whole SiglipModel.
    "siglip2_fixed": (SiglipConfig(vision_config=VISION, text_config={**VISION, "vocab_size": 32}), 0),
    "dinov2": (Dinov2Config(**VISION), 1),
    "dinov2_registers": (Dinov2WithRegistersConfig(**VISION, num_register_tokens=4), 5),
    "dinov3": (DINOv3ViTConfig(**VISION, num_register_tokens=3), 4),
    "vit": (ViTConfig(**VISION), 1),
}
SMALLER = {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}}  # than the canvas, as DINOv2's is
IMAGE_PROCESSORS: dict[str, tuple[str, dict]] = {
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": IMAGE_SIZE}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}),
    "dinov2": ("BitImageProcessor", SMALLER),
    "dinov2_registers": ("BitImageProcessor", SMALLER),
    "dinov3": ("DINOv3ViTImageProcessorFast", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.5]}),
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
LANGUAGE_MODELS: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": WINDOW}),
    "phi": (PhiConfig, {}),
    "phi3": (Phi3Config, {}),
    "gemma": (GemmaConfig, {"head_dim": 8}),
    "gemma2": (
        Gemma2Config,
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": SLIDING},
    ),
    "smollm3": (SmolLM3Config, {"no_rope_layer_interval": 2}),
    "olmo": (OlmoConfig, {}),
    "olmo2": (Olmo2Config, {}),
    "granite": (
        GraniteConfig,
        {"embedding_multiplier": 12.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
}


def save_encoder(folder: Path, family: str) -> Path:
    """Save a random encoder, and the config of its image processor as the hub has it."""
    torch.manual_seed(0)
    AutoModel.from_config(ENCODERS[family][0]).save_pretrained(folder)
    canvas = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    kind, options = IMAGE_PROCESSORS.get(family, ("ViTImageProcessor", canvas))
    config = {"image_processor_type": kind, **options}
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def language_model(family: str, *, tied: bool) -> PreTrainedModel:
    """A random causal LM in eval mode, wide enough that greedy choices are no near-ties."""
    config_class, options = LANGUAGE_MODELS[family]
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = AutoModelForCausalLM.from_config(config_class(**{**shape, **options})).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, std=0.2)
    return model


def save_language_model(folder: Path, family: str, *, tied: bool) -> Path:
    """Save a random causal LM and its tokenizer."""
    language_model(family, tied=tied).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
