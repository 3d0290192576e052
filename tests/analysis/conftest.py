import functools
import json

import pytest
import torch

from tests.tiny import save_encoder, save_language_model
from vision_remember.model import Engine, VisionRememberForConditionalGeneration, VisionRememberProcessor

AVG_POOL = {"type": "avg_pool", "scale": 3}  # 6 x 6 patches -> 2 x 2 tokens


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory):
    """A factory of engines with tiny random models whose insertions do something."""
    folder = tmp_path_factory.mktemp("backbones")
    backbones = str(save_encoder(folder / "clip")), str(save_language_model(folder / "qwen2"))

    @functools.cache
    def built(refusion: str) -> Engine:
        model = VisionRememberForConditionalGeneration.from_backbones(
            *backbones, projector=AVG_POOL, refusion=json.loads(refusion)
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, parameter in model.parts()["refusion"]:
                parameter.normal_(std=0.3, generator=generator)
        return Engine(model, VisionRememberProcessor.from_backbones(*backbones, model.config))

    return lambda refusion: built(json.dumps(refusion))
