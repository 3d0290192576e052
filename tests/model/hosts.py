"""Tiny random LLaVA and LLaVA-NeXT models of transformers' own classes, and prompts for them."""

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 63
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
CANVAS = {"image_size": 32, "patch_size": 8}  # 4 x 4 patches a tile
TEXT = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
CLIP, SIGLIP = CLIPVisionConfig(**VISION, **CANVAS), SiglipVisionConfig(**VISION, **CANVAS)
LLAMA, QWEN2 = LlamaConfig(**TEXT), Qwen2Config(**TEXT)
MISTRAL = MistralConfig(**TEXT, sliding_window=40)
HOSTS = {
    "llava": (LlavaForConditionalGeneration, LlavaConfig, CLIP, LLAMA, {"vision_feature_select_strategy": "default"}),
    "llava_class_token": (
        LlavaForConditionalGeneration,
        LlavaConfig,
        CLIP,
        QWEN2,
        {"vision_feature_select_strategy": "full"},
    ),
    "llava_two_levels": (LlavaForConditionalGeneration, LlavaConfig, CLIP, LLAMA, {"vision_feature_layer": [-2, 1]}),
    "llava_siglip": (
        LlavaForConditionalGeneration,
        LlavaConfig,
        SIGLIP,
        QWEN2,
        {"vision_feature_select_strategy": "full"},
    ),
    "next": (LlavaNextForConditionalGeneration, LlavaNextConfig, CLIP, MISTRAL, {"image_grid_pinpoints": PINPOINTS}),
    "next_siglip": (
        LlavaNextForConditionalGeneration,
        LlavaNextConfig,
        SIGLIP,
        LLAMA,
        {"image_grid_pinpoints": PINPOINTS, "vision_feature_select_strategy": "full"},
    ),
}


def build_host(kind: str):
    """A random model in eval mode."""
    model_class, config_class, vision, text, options = HOSTS[kind]
    torch.manual_seed(0)
    config = config_class(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, **options)
    return model_class(config).eval()


def images(kind: str, *sizes: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Noise images of these heights and widths, as the model takes them."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    if not kind.startswith("next"):
        return {"pixel_values": torch.randn(len(sizes), 3, 32, 32, generator=generator)}
    size = {"height": 32, "width": 32}
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=PINPOINTS)
    noise = [torch.randint(0, 256, (*s, 3), generator=generator, dtype=torch.uint8).numpy() for s in sizes]
    return dict(processor([Image.fromarray(x) for x in noise], return_tensors="pt"))


def prompts(model, kind: str, rows: list[list[tuple[int, int]]], *, extra: int = 0, side: str = "left") -> dict:
    """A padded batch: each row some words, then each of its images and a word after it, then a question. Row r begins with r words more."""
    sizes = [size for row in rows for size in row]
    pixels = images(kind, *sizes) if sizes else {}
    lengths = [len(x) for x in model.get_image_features(**pixels).pooler_output] if sizes else []
    texts, taken = [], 0
    for number, row in enumerate(rows):
        ids = [3, 7, *range(11, 11 + number)]
        for _ in row:
            ids += [IMAGE_TOKEN] * lengths[taken] + [20 + taken]
            taken += 1
        texts.append([*ids, 9, 31, 17])
    width = max(map(len, texts)) + extra
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, text in enumerate(texts):
        place = slice(width - len(text), None) if side == "left" else slice(len(text))
        ids[number, place], mask[number, place] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask, **pixels}
