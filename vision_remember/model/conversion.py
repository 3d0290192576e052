"""LLaVA checkpoints in: a LLaVA-1.5 or LLaVA-NeXT folder of `transformers`, or LLaVA's own `mm_projector`, becomes one of our models.

Encoder, decoder, head and projector are copied as they are, and so are tokenizer, chat template and what happens to an image, so the
model answers as before. A fresh re-fusion method starts as the identity: until it is trained, nothing changes. What another class
computes differently is refused, and at the end both models are asked the same and must say the same.

Source: transformers `models/llava` and `models/llava_next`; haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT for `mm_projector` and config names.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    GenerationConfig,
    PreTrainedModel,
)

from vision_remember.model.chat import IMAGE_TOKEN, TURN_END, TURN_START
from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.encoder import count_prefix_tokens
from vision_remember.model.kept_template import KeptTemplate
from vision_remember.model.mm_projector import Converted, from_mm_projector
from vision_remember.model.modeling import VisionRememberForConditionalGeneration
from vision_remember.model.processing import VisionRememberProcessor

HUGGING_FACE = ("llava", "llava_next")
SAME = 1e-4  # of the largest value; the same float32 operations in another order differ by far less, another function by far more


def convert(
    source: str | Path,
    *,
    refusion: dict | None = None,
    vision: str | None = None,
    text: str | None = None,
) -> Converted:
    """Turn a LLaVA checkpoint into a model of this package.

    Args:
        source: Folder of a LLaVA-1.5 or LLaVA-NeXT model as `transformers` saves it, or one with `mm_projector.safetensors` and the
            `config.json` of the original LLaVA.
        refusion: `{"type": ..., options}` of a method to add, fresh; None: `none`.
        vision: Folder or hub id of the vision encoder; for the original layout, whose folder holds the projector alone.
        text: The same of the language model.

    Returns:
        Model, in eval mode and the dtype of the checkpoint, and processor; `save_pretrained` of both makes a model folder.

    Raises:
        ValueError: The folder holds no such checkpoint, or one that computes something else; says what.
    """
    source = Path(source)
    try:
        values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} has no readable config.json ({type(error).__name__}); give a checkpoint's folder"
        ) from None
    if "mm_projector_type" in values:
        return from_mm_projector(source, values, refusion, vision, text)
    if values.get("model_type") not in HUGGING_FACE:
        raise ValueError(
            f"{source} holds a model of type {values.get('model_type')!r}; {', '.join(HUGGING_FACE)} and the original LLaVA (with "
            "mm_projector_type in config.json) can be converted"
        )
    if vision or text:
        raise ValueError(f"{source} holds its own encoder and language model; leave out vision and text")
    return _from_transformers(source, refusion)


def _from_transformers(source: Path, refusion: dict | None) -> Converted:
    if not list(source.glob("*.safetensors")):
        raise ValueError(
            f"{source} has no .safetensors weights; pickled weights are not read, save the model as safetensors first"
        )
    llava, info = AutoModelForImageTextToText.from_pretrained(
        source, dtype="auto", use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(map(str, info["missing_keys"])):
        raise ValueError(f"{source} lacks {len(missing)} weights of {type(llava).__name__}, first {missing[0]}")
    llava = llava.eval()
    theirs = AutoProcessor.from_pretrained(source, backend="pil")
    num_prefix_tokens = _check(llava)
    tokenizer, chat_template = theirs.tokenizer, theirs.chat_template or theirs.tokenizer.chat_template
    if not isinstance(chat_template, str):
        raise ValueError(f"{source} has no chat template; put the model's own beside it as chat_template.jinja")
    if (
        not tokenizer.is_fast
        or theirs.image_token != IMAGE_TOKEN
        or theirs.image_token_id != llava.config.image_token_id
    ):
        raise ValueError(
            f"{source} needs a tokenizer.json and {IMAGE_TOKEN} as token {llava.config.image_token_id}, its processor has "
            f"{theirs.image_token!r} as {theirs.image_token_id}; save the processor that belongs to the model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    template = KeptTemplate(tokenizer, chat_template, num_image_tokens=1)
    has_turns = TURN_START in chat_template and {TURN_START, TURN_END} <= set(tokenizer.get_added_vocab())
    turns = [tokenizer.convert_tokens_to_ids(token) if has_turns else None for token in (TURN_START, TURN_END)]
    config = VisionRememberConfig(
        vision_config=llava.config.vision_config.to_dict(),
        text_config={**llava.config.text_config.to_dict(), "tie_word_embeddings": llava.config.tie_word_embeddings},
        projector={"type": "mlp", "level": _level(llava.config)},
        refusion=refusion,
        resolution=_resolution(llava.config, theirs.image_processor),
        image_token_id=llava.config.image_token_id,
        turn_start_token_id=turns[0],
        turn_end_token_id=turns[1],
        user_header_length=len(template.encode_text("user\n")),
        num_prefix_tokens=num_prefix_tokens,
        dtype=llava.dtype,
    )
    model = VisionRememberForConditionalGeneration._from_config(config, dtype=llava.dtype).eval()
    _copy_weights(llava, model)
    _check_same(llava, model)
    ends = llava.generation_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[config.image_token_id],  # a generated placeholder would have no image
    )
    processor = VisionRememberProcessor(
        _image_processor(theirs.image_processor, config),
        tokenizer,
        **config.processor_options,
        keeps_template=True,
        chat_template=chat_template,
    )
    return model, processor


def _check(llava: PreTrainedModel) -> int:
    """Refuse what our `mlp` does not compute; returns the number of tokens that the encoder puts before its patches."""
    config, name = llava.config, type(llava).__name__
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise ValueError(
            f"this {name} has a projector with {config.projector_hidden_act} and bias={config.multimodal_projector_bias}; the "
            "projector mlp has gelu and biases"
        )
    prefix = count_prefix_tokens(config.vision_config)
    strategy = config.vision_feature_select_strategy
    if (prefix, strategy) not in ((0, "full"), (1, "default")):
        raise ValueError(
            f"this {name} has an encoder with {prefix} tokens before its patches and vision_feature_select_strategy={strategy!r}, so its "
            "tokens are not exactly the patches; patches alone are 'default' with one class token (CLIP) and 'full' with none (SigLIP)"
        )
    return prefix


def _level(config: Any) -> int:
    layers = config.vision_feature_layer
    if isinstance(layers, (list, tuple)) and len(layers) == 1:
        layers = layers[0]
    if not isinstance(layers, int):
        raise ValueError(
            f"vision_feature_layer is {layers}, and the projector mlp reads one level; such a model cannot be converted"
        )
    return layers


def _resolution(config: Any, processor: Any) -> dict:
    """What the checkpoint's own image processor does to an image, in the words of `tiling.Resolution`."""
    side, size, crop = config.vision_config.image_size, dict(processor.size), dict(processor.crop_size or {})
    sides = {
        value for value in (*size.values(), *(crop.values() if processor.do_center_crop else ())) if value is not None
    }
    if sides != {side} or not processor.do_resize:
        raise ValueError(
            f"the image processor resizes to {size} and crops to {crop}, the encoder reads {side} x {side} pixels; correct the "
            "preprocessor_config.json"
        )
    if config.model_type == "llava_next":
        pinpoints = [list(pinpoint) for pinpoint in config.image_grid_pinpoints]
        if pinpoints != [list(pinpoint) for pinpoint in processor.image_grid_pinpoints]:
            raise ValueError(
                f"image_grid_pinpoints are {pinpoints} in the model and {processor.image_grid_pinpoints} in its processor; make them agree"
            )
        return {"mode": "anyres", "pinpoints": pinpoints}
    if getattr(processor, "do_pad", False):
        return {"mode": "pad"}
    return {"mode": "crop" if size.get("shortest_edge") else "resize"}


def _image_processor(theirs: Any, config: VisionRememberConfig) -> CLIPImageProcessorPil:
    """Scales and normalises as theirs; where the image goes is our own business."""
    height, width = config.image_size
    names = ("resample", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize")
    return CLIPImageProcessorPil(
        size={"height": height, "width": width}, do_center_crop=False, **{name: getattr(theirs, name) for name in names}
    )


def _copy_weights(llava: PreTrainedModel, model: VisionRememberForConditionalGeneration) -> None:
    projector = re.compile(r"model\.multi_modal_projector\.")
    weights = llava.state_dict()
    model.model.multi_modal_projector.load_original({n: w for n, w in weights.items() if projector.match(n)})
    rest = {name: weight for name, weight in weights.items() if not projector.match(name)}
    missing, unexpected = model.load_state_dict(rest, strict=False)
    own = {name for name, _ in model.parts()["refusion"]} | {name for name in missing if projector.match(name)}
    if unexpected or set(missing) - own:
        left = sorted(set(missing) - own)
        raise ValueError(
            f"weights of {type(llava).__name__} do not fit: missing {left[:3]}, left over {sorted(unexpected)[:3]}"
        )
    model.tie_weights()


@torch.no_grad()
def _check_same(llava: PreTrainedModel, model: VisionRememberForConditionalGeneration) -> None:
    """Compare image tokens and logits of both models, so that a difference nobody thought of is found here."""
    generator = torch.Generator().manual_seed(0)
    height, width = model.config.image_size
    pixels = torch.randn(1, *model.config.pixel_shape, generator=generator).to(llava.dtype)
    sizes = {"image_sizes": torch.tensor([[2 * height, 2 * width]])} if model.config.tiling.is_anyres else {}
    ids = torch.arange(1, 9)[None].clamp(max=llava.config.text_config.vocab_size - 1)
    ids = ids[ids != llava.config.image_token_id][None]
    for what, expected, given in (
        (
            "image tokens",
            *(m.get_image_features(pixel_values=pixels, **sizes).pooler_output[0] for m in (llava, model)),
        ),
        ("logits", llava(input_ids=ids).logits, model(input_ids=ids).logits),
    ):
        difference = float((given - expected).abs().max()) if given.shape == expected.shape else float("inf")
        if not difference <= SAME * float(expected.abs().max()):
            raise ValueError(
                f"{type(llava).__name__} and its conversion disagree on {what} by {difference:.3g}; this checkpoint computes something "
                "that our model does not"
            )
