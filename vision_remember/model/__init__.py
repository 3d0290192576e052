"""The Hugging Face trio of LLaVA-VR models, and their registration with the Auto classes."""

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.engine import Engine
from vision_remember.model.modeling import VisionRememberForConditionalGeneration, VisionRememberModel
from vision_remember.model.processing import VisionRememberProcessor

AutoConfig.register(VisionRememberConfig.model_type, VisionRememberConfig)
AutoModel.register(VisionRememberConfig, VisionRememberModel)
AutoModelForImageTextToText.register(VisionRememberConfig, VisionRememberForConditionalGeneration)
AutoProcessor.register(VisionRememberConfig, VisionRememberProcessor)
# `transformers serve` finds a class by its name in the library, and learns from this table that it takes images.
transformers.VisionRememberForConditionalGeneration = VisionRememberForConditionalGeneration
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[VisionRememberConfig.model_type] = (
    VisionRememberForConditionalGeneration.__name__
)

__all__ = [
    "Engine",
    "VisionRememberConfig",
    "VisionRememberForConditionalGeneration",
    "VisionRememberModel",
    "VisionRememberProcessor",
]
