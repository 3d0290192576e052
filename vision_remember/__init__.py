"""Vision Remember: efficient multimodal LLMs whose vision tokens look again between decoder layers.

Importing the package registers its models with the Auto classes of `transformers`.
"""

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.model import (
    VisionRememberConfig,
    VisionRememberForConditionalGeneration,
    VisionRememberModel,
    VisionRememberProcessor,
)
from vision_remember.model.attached import attach
from vision_remember.model.engine import Engine
from vision_remember.projectors import build_projector

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Grid",
    "VisionFeatures",
    "VisionRememberConfig",
    "VisionRememberForConditionalGeneration",
    "VisionRememberModel",
    "VisionRememberProcessor",
    "__version__",
    "attach",
    "build_projector",
]
