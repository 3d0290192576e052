"""The Hugging Face trio of LLaVA-VR models, and their registration with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.engine import Engine
from vision_remember.model.modeling import VisionRememberForConditionalGeneration, VisionRememberModel
from vision_remember.model.processing import VisionRememberProcessor

AutoConfig.register(VisionRememberConfig.model_type, VisionRememberConfig)
AutoModel.register(VisionRememberConfig, VisionRememberModel)
AutoModelForImageTextToText.register(VisionRememberConfig, VisionRememberForConditionalGeneration)
AutoProcessor.register(VisionRememberConfig, VisionRememberProcessor)

__all__ = [
    "Engine",
    "VisionRememberConfig",
    "VisionRememberForConditionalGeneration",
    "VisionRememberModel",
    "VisionRememberProcessor",
]
