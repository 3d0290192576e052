"""The original LLaVA's layout of a trained projector: `mm_projector` weights and a config.json, beside two backbones.

That is what LLaVA's first stage writes, and all that a projector's authors publish when the backbones stay as they were. The prompt format
is this package's ChatML, because such a folder names none of its own.

Source: haotian-liu/LLaVA `llava/model/llava_arch.py` and `llava/train/train.py`; LLaVA-VL/LLaVA-NeXT for any resolution.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vision_remember.model.modeling import VisionRememberForConditionalGeneration
from vision_remember.model.processing import VisionRememberProcessor

Converted = tuple[VisionRememberForConditionalGeneration, VisionRememberProcessor]

UNPICKLE = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({name: tensor.contiguous() for name, tensor in torch.load('mm_projector.bin', weights_only=True).items()}, "
    "'mm_projector.safetensors')\""
)


def from_mm_projector(
    source: Path, values: dict, refusion: dict | None, vision: str | None, text: str | None
) -> Converted:
    """Join two backbones by a trained projector of the original LLaVA.

    Args:
        source: Folder with `mm_projector.safetensors`.
        values: What its config.json says.
        refusion: `{"type": ..., options}` of a method to add, fresh; None: `none`.
        vision: Folder or hub id of the vision encoder.
        text: The same of the language model.

    Raises:
        ValueError: A pickle, a missing backbone, or a projector that our `mlp` is not.
    """
    weights = source / "mm_projector.safetensors"
    if not weights.is_file():
        pickled = (source / "mm_projector.bin").is_file()
        raise ValueError(
            f"{source} has no mm_projector.safetensors"
            + (
                f"; its mm_projector.bin is a pickle, which can run code when read. If you trust it: {UNPICKLE}"
                if pickled
                else ""
            )
        )
    if vision is None or text is None:
        raise ValueError(
            f"{source} holds a projector alone; name its backbones with vision (config.json says {values.get('mm_vision_tower')!r}) and "
            f"text ({values.get('_name_or_path')!r})"
        )
    depth = re.fullmatch(r"mlp(\d+)x_gelu", str(values["mm_projector_type"]))
    facts = {"mm_vision_select_feature": ("patch", None), "mm_use_im_start_end": (False, None)}
    odd = {key: values.get(key) for key, good in facts.items() if values.get(key) not in good}
    if depth is None or odd:
        odd |= {} if depth else {"mm_projector_type": values["mm_projector_type"]}
        raise ValueError(
            f"{source}/config.json says {odd}; an mlpNx_gelu projector of patch features alone can be converted"
        )
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights} cannot be read: {error}") from None
    resolution = _resolution(source, values)
    model = VisionRememberForConditionalGeneration.from_backbones(
        vision,
        text,
        projector={"type": "mlp", "level": values.get("mm_vision_select_layer", -2), "depth": int(depth[1])},
        refusion=refusion,
        resolution=resolution,
    )
    model.config.vision_token_rms = None  # LLaVA hands on what its projector makes
    newline = state.pop("model.image_newline", None)
    if (newline is not None) != model.config.tiling.is_anyres:
        raise ValueError(
            f"{weights} has {'an' if newline is not None else 'no'} image_newline, and config.json asks for resolution {resolution['mode']}"
        )
    if newline is not None and model.model.image_newline is not None:
        with torch.no_grad():
            model.model.image_newline.copy_(newline)
    model.model.multi_modal_projector.load_original(state)
    return model, VisionRememberProcessor.from_backbones(vision, text, model.config)


def _resolution(source: Path, values: dict) -> dict:
    aspect, merge = values.get("image_aspect_ratio", "square"), values.get("mm_patch_merge_type", "flat")
    if aspect == "anyres" and merge == "spatial_unpad":
        return {"mode": "anyres", "pinpoints": values.get("image_grid_pinpoints", []), "rule": "llava_next"}
    modes = {"square": "crop", "pad": "pad"}
    if aspect not in modes or merge != "flat":
        raise ValueError(
            f"{source}/config.json has image_aspect_ratio {aspect!r} with mm_patch_merge_type {merge!r}; square, pad, and anyres with "
            "spatial_unpad can be converted"
        )
    return {"mode": modes[aspect]}
