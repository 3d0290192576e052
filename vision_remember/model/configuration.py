"""The config of a LLaVA-VR model: two backbones, a projector, a re-fusion method, and the token ids that join them.

`projector` and `refusion` are plain dicts (`{"type": ..., options}`) so that they travel in `config.json`, with every option, given or
not: a default that changes later does not change a model saved before. `validate_architecture` builds the plug-ins' strict configs from
them and checks levels and layers against the depth of the backbones, before any weight exists.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vision_remember import plugins
from vision_remember.geometry import Grid
from vision_remember.model import encoder
from vision_remember.model.embedded import public_name
from vision_remember.model.pixels import pixel_shape
from vision_remember.projectors import build_projector, check_windows, tokens_are_a_set
from vision_remember.refusion import Backbones, build_refusion
from vision_remember.tiling import Resolution, Tiling

# What transformers itself may write beside the fields of a config class.
_LIBRARY_KEYS = {
    "_name_or_path",
    "attn_implementation",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
    "use_cache",
    "_commit_hash",
}


@strict
class VisionRememberConfig(PreTrainedConfig):
    """Everything that shapes the weights of a model, and the token ids its forward pass looks for.

    Attributes:
        vision_config: Config (or dict) of any registered vision encoder.
        text_config: Config (or dict) of any registered causal LM that passes keywords through to attention.
        projector: `{"type": file name in projectors/, options}`.
        refusion: `{"type": file name in refusion/, options}`.
        resolution: Fields of `tiling.Resolution`: how an image of any size reaches the encoder's canvas.
        image_token_id: The placeholder; one per vision token.
        turn_start_token_id: Opens a chat turn; guided methods look for it. None where the chat template marks no turns.
        turn_end_token_id: Closes a chat turn.
        user_header_length: Tokens of "user\\n" after the opening; they are no user text.
        num_prefix_tokens: Tokens an encoder puts before its patches (CLIP's class token: 1; SigLIP: 0); they are dropped.
        vision_token_rms: Root mean square that every vision token is scaled to where it enters the decoder, beside the text embeddings as
            `get_input_embeddings()` gives them. A family that scales inside its embedding layer (Gemma: sqrt(D)) has done so by then; one
            that scales what enters (Granite: embedding_multiplier) scales both. None leaves the projector's scale, as LLaVA does.
        tie_word_embeddings: As in the text config.
    """

    model_type = "vision_remember"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    vision_config: Any = None
    text_config: Any = None
    projector: Any = None
    refusion: Any = None
    resolution: Any = None
    image_token_id: int = 151655
    turn_start_token_id: int | None = 151644
    turn_end_token_id: int | None = 151645
    user_header_length: int = 2
    num_prefix_tokens: int = 1
    vision_token_rms: float | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(kwargs, known=self.__dataclass_fields__)
        for room in ("projector", "refusion", "resolution"):
            if not isinstance(getattr(self, room), dict | None):
                raise ValueError(f"{room} must be a dict of options, got {getattr(self, room)!r}")
            if room != "resolution" and getattr(self, room) and "type" not in getattr(self, room):
                raise ValueError(f"{room} options {getattr(self, room)} lack 'type', a file name in {room}")
        self.projector, self.refusion = self.projector or {"type": "mlp"}, self.refusion or {"type": "none"}
        self.resolution = plugins.listed(self.resolution or {"mode": "pad"})
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        # Levels are hidden states as the layers leave them; a tower's final norm must not slip into the last one.
        self.vision_config.tie_last_hidden_states = False
        self.validate_architecture()  # here too, because the strict decorator wraps errors into a type that is no ValueError
        self.keep_options(*self.build_plugins(torch.device("meta")))

    def validate_architecture(self) -> None:
        """Check the plug-ins' options, and their levels and layers against the backbones.

        Raises:
            ValueError: Unknown or misspelt options, a level the encoder lacks, a layer the decoder lacks, vision tokens without windows.
        """
        super().validate_architecture()
        projector, refusion = self.build_plugins(torch.device("meta"))
        for room, plugin in (("projector", projector), ("refusion", refusion)):
            resolve_levels(plugin.levels, self.vision_config.num_hidden_layers, room)
        if refusion.has_windows:
            check_windows(projector, self.token_grid, self.patch_grid)
        depth = self.text_config.num_hidden_layers
        if outside := [layer for layer in refusion.layers if not -1 <= layer < depth]:
            raise ValueError(
                f"refusion.layers names {outside[0]}, the decoder has {depth} layers; use -1 (before layer 0) to {depth - 1}"
            )
        if refusion.needs_guidance and self.turn_start_token_id is None:
            raise ValueError(
                "refusion reads the user text of a turn (guidance), and this model's chat template marks no turns; set guidance: false"
            )
        if self.tiling.is_anyres and refusion.views:
            raise ValueError(
                f"refusion {self.refusion['type']} reads an enlarged page of its own, and resolution: anyres makes tiles of every image; "
                "choose one of the two"
            )

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON holds it: of a backbone that was a folder it tells the last name only."""
        values = super().to_dict()
        for part in ("vision_config", "text_config"):
            if name := values[part].get("_name_or_path"):
                values[part]["_name_or_path"] = public_name(name)
        return values

    def keep_options(self, projector: Any, refusion: Any) -> None:
        """Note every option of the two built plug-ins, given or not."""
        self.projector = plugins.complete("projectors", self.projector, projector)
        self.refusion = plugins.complete("refusion", self.refusion, refusion)

    def build_plugins(self, device: torch.device | None = None) -> tuple[Any, Any]:
        """Make the projector and the re-fusion module that this config describes."""
        with device or torch.device("cpu"):
            projector = build_projector(
                **self.projector, feature_width=self.vision_config.hidden_size, text_width=self.text_config.hidden_size
            )
            refusion = build_refusion(self.refusion, Backbones.from_configs(self.vision_config, self.text_config))
        return projector, refusion

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the encoder's canvas in pixels."""
        return encoder.image_size(self.vision_config)

    @property
    def views(self) -> tuple[Grid, ...]:
        """Enlarged pages that the re-fusion method reads beside the page itself, as grids of canvases."""
        _, refusion = self.build_plugins(torch.device("meta"))
        return refusion.views

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one image: (3, height, width), or (1 + X, 3, height, width) with X crops of enlarged pages.

        An any-resolution model reads up to 1 + X views; the pixels of an image with fewer are filled up.
        """
        if self.tiling.is_anyres:
            return (self.tiling.max_views, 3, *self.image_size)
        return pixel_shape(self.image_size, self.views)

    @property
    def patch_grid(self) -> Grid:
        """Grid of the encoder's patches."""
        return encoder.patch_grid(self.vision_config)

    @property
    def token_grid(self) -> Grid:
        """Grid of the vision tokens of one canvas after the projector."""
        return self.tiling.token_grid

    @property
    def tiling(self) -> Tiling:
        """What decides where the vision tokens of an image come from, except its size."""
        projector, _ = self.build_plugins(torch.device("meta"))
        return Tiling(
            resolution=plugins.strict_config(Resolution, self.resolution, where="resolution"),
            canvas=self.image_size,
            token_grid=projector.tokens_out(self.patch_grid),
            is_set=tokens_are_a_set(projector),
        )

    @property
    def processor_options(self) -> dict[str, Any]:
        """What the processor of this model must know of it, as arguments of `VisionRememberProcessor`."""
        tiling = self.tiling
        has_map = tiling.is_anyres and not tiling.is_set
        return {
            "num_image_tokens": tiling.token_grid.num_cells,
            "image_size": tiling.canvas,
            "views": [(view.height, view.width) for view in self.views],
            "resolution": self.resolution,
            "token_grid": [tiling.token_grid.height, tiling.token_grid.width] if has_map else None,
        }


def resolve_levels(levels: Sequence[int], num_layers: int, room: str) -> tuple[int, ...]:
    """Indices into `hidden_states` (0 = embeddings, i = after layer i) as non-negative numbers.

    Args:
        levels: As plug-ins name them; -2 is the output of the last layer but one.
        num_layers: Depth of the encoder.
        room: Who asks, for the message.

    Raises:
        ValueError: The encoder has no such hidden state.
    """
    count = num_layers + 1
    for level in levels:
        if not -count <= level < count:
            raise ValueError(f"{room} asks for encoder level {level}, the encoder has levels {-count} to {count - 1}")
    return tuple(level % count for level in levels)


def _refuse_unknown(keys: Iterable[str], known: Iterable[str]) -> None:
    generation = GenerationConfig._get_default_generation_params()
    for key in keys:
        if key not in _LIBRARY_KEYS and key not in generation:
            nearest = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"the model config has no key {key!r}{hint}")
