import copy
import functools
import json

import pytest
import torch
from PIL import Image, ImageDraw

from tests.tiny import IMAGE_SIZE, save_encoder, save_language_model
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor

AVG_POOL = {"type": "avg_pool", "scale": 3}  # 6 x 6 patches -> 2 x 2 tokens
NONE = {"type": "none"}
V1 = {"type": "remember", "layers": [-1, 1]}
V2 = {"type": "remember", "layers": [0, 2], "bidirectional": True, "guidance": True, "margin": 1}
DEEPSTACK = {"type": "deepstack", "layers": [-1, 0, 2], "cell": [3, 3]}
SVA = {"type": "sva", "layers": [0, 1], "width": 16, "num_heads": 2}
METHODS = {"none": NONE, "v1": V1, "v2": V2, "deepstack": DEEPSTACK, "sva": SVA}


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Folders of a tiny random CLIP encoder and a tiny random Qwen2."""
    folder = tmp_path_factory.mktemp("backbones")
    return save_encoder(folder / "clip"), save_language_model(folder / "qwen2")


@pytest.fixture(scope="session")
def build(backbones):
    """A factory of assembled models in eval mode; every call gives a fresh copy."""

    @functools.cache
    def assembled(refusion: str):
        return VisionRememberForConditionalGeneration.from_backbones(
            *backbones, projector=AVG_POOL, refusion=json.loads(refusion)
        )

    return lambda refusion: copy.deepcopy(assembled(json.dumps(refusion)))


@pytest.fixture(scope="session")
def processor(backbones, build):
    return VisionRememberProcessor.from_backbones(*backbones, build(NONE).config)


def stir(model, scale: float = 0.2):
    """Give every re-fusion parameter a random value of about unit gain, so that the insertions change what the model says."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.parts()["refusion"]:
            parameter.normal_(std=scale, generator=generator)
    return model


def page(seed: int, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> Image.Image:
    """A little picture that differs from seed to seed."""
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for step in range(4):
        left, top = (7 * seed + 11 * step) % 30, (5 * seed + 13 * step) % 30
        draw.rectangle((left, top, left + 12, top + 9), fill=((40 * seed) % 256, (90 * step) % 256, (17 * seed) % 256))
    return image


def ask(text: str, *images, role: str = "user") -> list[dict]:
    """One user turn: the images, then the text."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": role, "content": [*parts, {"type": "text", "text": text}]}]


def answered(text: str, answer: str, *images) -> list[dict]:
    return [*ask(text, *images), {"role": "assistant", "content": answer}]


MIXED = [
    ask("What is the total?", page(1)),
    ask("Hello"),
    ask("Compare these two pages, then say which one is the longer of them.", page(2), page(3)),
    [*answered("Name?", "Anna", page(4)), *ask("And this one?", page(5))],
    ask("Which colour?", page(6)),
    [{"role": "system", "content": "Be brief."}, *ask("What?", page(7))],
    ask("Count from one to ten in words"),
    ask("", page(8)),
]
