"""Re-fusion in a LLaVA or LLaVA-NeXT that `transformers` has already loaded, so that the idea can be tried on an existing model.

    model = AutoModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf")
    attach(model, refusion={"type": "remember"})          # the same logits, bit for bit, until the new parameters are trained
    model.save_refusion("remember.safetensors")           # the new parameters alone, with their options
    attach(another, refusion="remember.safetensors")      # and back, into a fresh copy of the same model

The vision tower still runs once per image; the levels that the method reads are taken from that run. Every patch token of these models
owns its patch (and its neighbours, with a margin). In LLaVA-NeXT every tile is an image of its own, because the tower saw it as one;
which token shows which patch of which tile is found by letting `transformers` pack numbers in place of features. Class tokens and newline
tokens own no patch, have no memory and are never changed.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

from vision_remember import plugins
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.model import refusion_file
from vision_remember.model.causal_lm import check_causal_lm
from vision_remember.model.configuration import resolve_levels
from vision_remember.model.encoder import count_prefix_tokens, patch_grid
from vision_remember.model.outputs import VisionRememberImageFeatures
from vision_remember.model.parts import insertions
from vision_remember.model.rows import pack, state_of_chunk
from vision_remember.refusion import Backbones, Method, RefusionState, build_refusion, flat_positions
from vision_remember.refusion.attach import attach as attach_to_decoder


def attach(model: PreTrainedModel, *, refusion: dict | str | Path, seed: int = 0) -> PreTrainedModel:
    """Put a re-fusion method between the decoder layers of a LLaVA or LLaVA-NeXT, in place.

    The new parameters are `model.refusion.*` and `model.language_model.layers.{i}.refusion.*`; all others keep names and values. They are
    made in the model's dtype, on its devices, and `model.save_refusion(file)` saves them alone.

    Args:
        model: A `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`.
        refusion: `{"type": ..., options}`, or a file of `save_refusion`.
        seed: Of the new parameters.

    Returns:
        The same model.

    Raises:
        ValueError: Another model, one spread over devices, a method that cannot work in it, levels or layers that it lacks; or weights
            of another shape, found when the method is in place, which then is a fresh one and changes nothing.
    """
    if not isinstance(model, LlavaForConditionalGeneration | LlavaNextForConditionalGeneration):
        raise ValueError(
            f"{type(model).__name__} is neither a LLaVA nor a LLaVA-NeXT of transformers; attach knows these two"
        )
    if hooked := [name for name, module in model.named_modules() if hasattr(module, "_hf_hook")]:
        raise ValueError(
            f"{len(hooked)} modules ({hooked[0] or 'the model'} first) have hooks of accelerate, which would pass the method by; load the "
            "model onto one device, attach, and then spread it with accelerate.dispatch_model"
        )
    weights: dict[str, Tensor] = {}
    if not isinstance(refusion, dict):
        refusion, weights = refusion_file.read(refusion)
    vision_config, text_config = model.config.vision_config, model.config.text_config
    num_prefix_tokens = count_prefix_tokens(vision_config)
    check_causal_lm(text_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = build_refusion(refusion, Backbones.from_configs(vision_config, text_config))
        _check_method(method, refusion["type"], model)
        indices = resolve_levels(method.levels, vision_config.num_hidden_layers, "refusion")
        attach_to_decoder(model.model.language_model, method)
    inner = model.model
    inner.refusion, inner.encoder_level_indices, inner.num_prefix_tokens = method, indices, num_prefix_tokens
    inner.token_grid = patch_grid(vision_config)
    inner.__class__, model.__class__ = _attached(inner.__class__), _saving(model.__class__)
    inner.refusion_options = plugins.complete("refusion", refusion, method)
    method.to(model.device, model.dtype)
    for layer in inner.language_model.layers:
        place = next(layer.parameters())
        for insertion in insertions(layer):
            insertion.to(place.device, model.dtype)
    if weights:
        refusion_file.load(inner, weights)
    return model


class _Attached:
    """What a `LlavaModel` or `LlavaNextModel` does in addition; mixed in before its class.

    Attributes:
        refusion: What all layers share of the method.
        refusion_options: What the method was made of.
        encoder_level_indices: Hidden states of the tower that the method reads, as non-negative numbers.
        num_prefix_tokens: Class and register tokens that the tower puts before its patches.
        token_grid: Grid of the patches of one tile, and so of its tokens.
        max_views: 1, because a tile counts as an image here.
    """

    refusion: Method
    refusion_options: dict
    encoder_level_indices: tuple[int, ...]
    num_prefix_tokens: int
    token_grid: Grid
    max_views = 1
    config: Any
    get_input_embeddings: Any
    get_placeholder_mask: Any

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> VisionRememberImageFeatures:
        """Vision tokens as ever, and a memory row for each of them in `deepstack_features`; arguments as in the model's own class."""
        own_layers = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        if image_sizes is not None:
            kwargs["image_sizes"] = image_sizes
        own: Any = super()
        outputs = own.get_image_features(
            pixel_values,
            vision_feature_layer=own_layers,
            vision_feature_select_strategy=strategy,
            output_hidden_states=[
                *self.encoder_level_indices,
                *([own_layers] if isinstance(own_layers, int) else own_layers),
            ],
            **{**kwargs, "return_dict": True},
        )
        states = [outputs.hidden_states[index][:, self.num_prefix_tokens :] for index in self.encoder_level_indices]
        features = VisionFeatures(levels=dict(zip(self.refusion.levels, states, strict=True)), grid=self.token_grid)
        owners = self._owners(len(states[0]), image_sizes, strategy)
        if (counts := [len(x) for x in owners]) != (given := [len(x) for x in outputs.pooler_output]):
            raise ValueError(
                f"images with {given} vision tokens, {counts} expected; give image_sizes as the processor made them"
            )
        memory = pack(self.refusion.memory(features, self.token_grid))
        # A row of zeros at the end, which tokens without a patch find at -1.
        tables = [nn.functional.pad(torch.cat(tensors), (0, 0, 0, 1)) for tensors in memory]
        rows = [[table[owner.to(table.device)] for owner in owners] for table in tables]
        if isinstance(self, LlavaNextModel) or len(owners[0]) > self.token_grid.num_cells:
            # Some tokens own no patch. Which ones is a third list that the others lack, so that nothing of theirs waits for data.
            rows.append([(owner >= 0)[:, None].to(tables[0].device) for owner in owners])
        return VisionRememberImageFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=list(outputs.pooler_output),
            deepstack_features=rows,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict[str, VisionRememberImageFeatures] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in the model's own class."""
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("give either pixel_values or mm_encoder_outputs")
        if pixel_values is not None and len(pixel_values) > 0:
            arguments = (pixel_values, image_sizes, vision_feature_layer, vision_feature_select_strategy)
            mm_encoder_outputs = {"image": self.get_image_features(*arguments)}
        image = (mm_encoder_outputs or {}).get("image")
        if image is not None:
            kwargs["refusion"] = self._state(image, input_ids, inputs_embeds)
        own: Any = super()
        return own.forward(
            input_ids=input_ids, inputs_embeds=inputs_embeds, mm_encoder_outputs=mm_encoder_outputs, **kwargs
        )

    def _owners(self, num_tiles: int, image_sizes: Tensor | None, strategy: str) -> list[Tensor]:
        """For each image, the memory row of each of its tokens, `long[n_i]`; -1 for tokens that own no patch."""
        num_patches = self.token_grid.num_cells
        cell = torch.arange(-self.num_prefix_tokens, num_patches)[1 if strategy == "default" else 0 :]
        rows = torch.where(cell >= 0, cell + torch.arange(num_tiles)[:, None] * num_patches, -1)  # [tiles, tokens]
        if not isinstance(self, LlavaNextModel):
            return list(rows)
        counts = [
            image_size_to_num_patches(size, self.config.image_grid_pinpoints, self.config.vision_config.image_size)
            for size in image_sizes  # type: ignore[union-attr]  # without them the model itself has refused
        ]
        tiles = rows[..., None].split(counts)
        packed, _ = self.pack_image_features(tiles, image_sizes, strategy, image_newline=torch.tensor([-1]))
        return [x.squeeze(1) for x in packed]

    def _state(
        self, image: VisionRememberImageFeatures, input_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> RefusionState:
        """The insertions' state for one chunk, in which only tokens with a memory row take part."""
        tokens = torch.cat(list(image.pooler_output))
        # Beside ids, the mask asks embeddings for nothing but their width.
        embeds = self.get_input_embeddings().weight if inputs_embeds is None else inputs_embeds
        mask = self.get_placeholder_mask(input_ids, embeds, tokens).squeeze(-1)
        rows, facts, *owned = (torch.cat(list(tensors)) for tensors in image.deepstack_features)
        if owned:
            owns = owned[0].squeeze(-1)
            without = flat_positions(mask, len(owns))[~owns.to(mask.device)]
            mask = mask.flatten().index_fill(0, without, False).view_as(mask)
            rows, facts = rows[owns], facts[owns]
        return state_of_chunk(self, VisionRememberImageFeatures(deepstack_features=[[rows], [facts]]), mask, input_ids)


class _Saving:
    """What the model with its LM head can do in addition."""

    model: Any

    def save_refusion(self, file: str | Path) -> None:
        """Save the parameters of the re-fusion method, and its options, as one safetensors file; `attach` reads it."""
        refusion_file.save(self.model, self.model.refusion_options, file)


def _check_method(method: Method, name: str, model: PreTrainedModel) -> None:
    """Refuse the methods that these models cannot feed."""
    refused = {
        "attends over whole images, and the tiles of a LLaVA-NeXT image lie interleaved, row by row; set bidirectional: false": (
            method.needs_whole_images and isinstance(model, LlavaNextForConditionalGeneration)
        ),
        "reads the user's turn between the control tokens of our own chat template, which prompts of this model lack; set guidance: "
        "false": method.needs_guidance,
        "reads enlarged views of an image, which the processor of this model does not make": bool(method.views),
        "drops tokens, which needs a model that says where its prompt ends; use VisionRememberForConditionalGeneration": (
            method.drops_after is not None
        ),
        "puts nothing between the layers; leave the model as it is": not method.layers,
    }
    for reason, is_so in refused.items():
        if is_so:
            raise ValueError(f"{name} cannot be attached to a {type(model).__name__}: it {reason}")


@functools.cache
def _attached(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    return _subclass(base, _Attached)


@functools.cache
def _saving(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    return _subclass(base, _Saving)


def _subclass(base: type[PreTrainedModel], addition: type) -> type[PreTrainedModel]:
    # The name is kept because it is written into config.json, and transformers finds classes by it.
    return type(base.__name__, (addition, base), {"__module__": base.__module__})
