"""Tiny random backbones for the tests: a vision encoder and a causal LM of a few thousand weights, saved as ordinary folders.

They stand where CLIP and Qwen2 stand in a real run and are loaded by exactly the same code. Nothing is downloaded: the tokenizer is
a byte-level BPE trained here on a few lines, with ChatML control tokens and no image token (adding it is the package's work).
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

IMAGE_SIZE = 48  # 6 x 6 patches of 8 pixels
CORPUS = (
    "What is the value of Total? The total is 42.\nuser assistant system",
    "Which colour is the circle? The circle is red.\nName: Anna Invoice: 1034",
)


def save_encoder(
    folder: Path,
    kind: str = "clip",
    *,
    num_layers: int = 4,
    image_size: int = IMAGE_SIZE,
    patch_size: int = 8,
    seed: int = 0,
) -> Path:
    """Save a random CLIP or SigLIP vision encoder with its image processor into `folder`."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    model_class, config_class, processor_class = {
        "clip": (CLIPVisionModel, CLIPVisionConfig, CLIPImageProcessorPil),
        "siglip": (SiglipVisionModel, SiglipVisionConfig, SiglipImageProcessorPil),
    }[kind]
    model_class(config_class(**shape)).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    processor = processor_class(size=size, crop_size=size) if kind == "clip" else processor_class(size=size)
    processor.save_pretrained(folder)
    return folder


def save_language_model(
    folder: Path,
    kind: str = "qwen2",
    *,
    num_layers: int = 4,
    tied: bool = True,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Save a random Qwen2 or Llama with grouped key/value heads, and its tokenizer, into `folder`."""
    tokenizer = tokenizer or build_tokenizer()
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # wide enough that greedy choices are not near-ties
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model_class, config_class = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "llama": (LlamaForCausalLM, LlamaConfig)}[
        kind
    ]
    model_class(config_class(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 pieces with the ChatML tokens of Qwen2 and one added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.add_tokens(["<tool_call>"])
    return fast
