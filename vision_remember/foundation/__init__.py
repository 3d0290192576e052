"""The embedded foundation: a tiny encoder and a tiny language model, pretrained on generated documents, and what is trained from them.

`weights/` holds what travels in the package, each a Hugging Face folder with safetensors; `weights/README.md` is the model card. The two
backbones stand to the tiny recipes as CLIP and Qwen2 stand to the paper's, and are loaded by the same code.
"""

from vision_remember.foundation.build import build

__all__ = ["build"]
