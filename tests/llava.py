"""Tiny random LLaVA checkpoints, saved by `transformers`' own classes: encoders x language models x LLaVA-1.5 and LLaVA-NeXT.

Each language model comes with the tokenizer and the chat template that its LLaVA has: SentencePiece-like pieces with a leading blank and a
beginning-of-text token for Llama (Vicuna's prompt) and Mistral ([INST]), byte-level pieces with ChatML for Qwen2.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.tiny import CORPUS, IMAGE_SIZE, build_tokenizer

PINPOINTS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]  # (height, width)
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>\n' }}{% else %}"
    "{{ content['text'] | trim }}{% endif %}{% endfor %}{{ ' [/INST]' }}{% else %}"
    "{{ ' ' + (message['content'][0]['text'] | trim) + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>\n' }}{% else %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"llama": VICUNA, "mistral": MISTRAL, "qwen2": CHATML}


def save_llava(folder: Path, kind: str, vision: str, text: str, *, seed: int = 0, **options) -> Path:
    """Save a random checkpoint with its processor.

    Args:
        folder: Made if need be.
        kind: `llava` or `llava_next`.
        vision: `clip` or `siglip`.
        text: `llama`, `qwen2` or `mistral`.
        options: Fields of the model's config.
    """
    tokenizer = build_tokenizer() if text == "qwen2" else build_pieces(is_legacy=text == "llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.padding_side = "left"
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision_config = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[vision](
        **shape, image_size=IMAGE_SIZE, patch_size=8
    )
    text_config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[text](
        **shape,
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + 5,  # rows that no token has, as in real checkpoints
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    strategy = {"clip": "default", "siglip": "full"}[vision]
    common = {"image_token_index": image_token, "vision_feature_select_strategy": strategy, **options}
    if kind == "llava_next":
        common.setdefault("image_grid_pinpoints", PINPOINTS)
    config_class = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}[kind]
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(
        config_class(vision_config=vision_config, text_config=text_config, **common)
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if kind == "llava":
        size = {"shortest_edge": IMAGE_SIZE} if vision == "clip" else side
        images = LlavaImageProcessorPil(size=size, crop_size=side, do_center_crop=vision == "clip")
    else:
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_grid_pinpoints=common["image_grid_pinpoints"]
        )
    processor_class = {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor}[kind]
    processor_class(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if vision == "clip" else 0,
        chat_template=TEMPLATES[text],
    ).save_pretrained(folder)
    return folder


def build_pieces(*, is_legacy: bool) -> PreTrainedTokenizerFast:
    """Pieces that carry their leading blank, with byte fallback, as Llama's and Mistral's tokenizers have them.

    Args:
        is_legacy: A blank before every stretch of text (Llama), or before the first alone (Mistral).
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    if is_legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if token["content"] in special
    ]  # bytes are ordinary
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        model_max_length=2048,
    )
