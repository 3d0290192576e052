"""The model without its LM head: encoder, projector, and a decoder with re-fusion between its layers.

    pixels --vision_tower--> levels --multi_modal_projector--> vision tokens -----+--> language_model --> hidden states
                               +--refusion.memory--> one row per vision token ----+    (keyword `refusion`)

Nothing is stored on a module between calls: features travel as `mm_encoder_outputs`, which `generate` encodes once, repeats for beams and
slices for chunked prefill (see `rows.py`).

Source: layout and names follow transformers/models/llava_next/modeling_llava_next.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.model.any_resolution import features_of_views, views_of
from vision_remember.model.configuration import VisionRememberConfig, resolve_levels
from vision_remember.model.outputs import VisionRememberImageFeatures, VisionRememberModelOutput
from vision_remember.model.parts import insertions
from vision_remember.model.pretrained import VisionRememberPreTrainedModel
from vision_remember.model.rows import check_counts, pack, state_of_chunk, without_rows
from vision_remember.model.shortening import shortening_of_chunk
from vision_remember.projectors import check_windows
from vision_remember.refusion.attach import attach

HEAD = r"^lm_head\."  # names of the head's weights


class VisionRememberModel(VisionRememberPreTrainedModel):
    """Encoder, projector, re-fusion and decoder, without the LM head.

    Attributes:
        token_grid: Grid of the vision tokens of one canvas.
        tiling: What decides where the tokens of an image come from, except its size.
        max_views: The most views that an image can have.
        image_newline: Of an any-resolution model: float[D], the token after each row of tiles; else None.
        encoder_level_indices: Encoder hidden states that projector and re-fusion read, ascending; the order of `encode`.
        pixel_shape: Shape of the pixels of one image.
    """

    _keys_to_ignore_on_load_unexpected = [HEAD]  # this class reads whole checkpoints, too

    def __init__(self, config: VisionRememberConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector, self.refusion = config.build_plugins()
        # Not only in the config itself: `from_pretrained(..., refusion=...)` sets them when it is made.
        config.keep_options(self.multi_modal_projector, self.refusion)
        self.language_model = AutoModel.from_config(config.text_config)
        attach(self.language_model, self.refusion)
        for plugin in (self.multi_modal_projector, self.refusion, *insertions(self.language_model)):
            for module in plugin.modules():
                module._is_hf_initialized = True  # plug-ins start as their constructors say, not as an LM's layers do
        self.tiling = config.tiling
        self.token_grid, self.max_views = self.tiling.token_grid, self.tiling.max_views
        width = config.text_config.hidden_size
        self.image_newline = nn.Parameter(torch.randn(width) * width**-0.5) if self.tiling.is_anyres else None
        self.pixel_shape = config.pixel_shape
        plugins = (self.multi_modal_projector, self.refusion)
        self.encoder_level_indices = tuple(sorted({index for plugin in plugins for index in self._indices(plugin)}))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Hidden states of the encoder at the levels that projector and re-fusion read.

        Args:
            pixel_values: float[N, 3, height, width] of N images; float[N, 1 + X, 3, height, width] where re-fusion reads X crops too, or
                where an any-resolution image has up to X tiles.
            image_sizes: long[N, 2], height and width of each image in pixels; for an any-resolution model alone.

        Returns:
            float[N, L, P, C], or float[N, L, 1 + X, P, C], in the order of `encoder_level_indices`; leading tokens that are no patches
            are dropped. Of an any-resolution model, one entry per view: float[views of all images, L, P, C].

        Raises:
            ValueError: The pixels are those of another model, or the encoder made another number of tokens than its patch grid has cells.
        """
        pixel_values = views_of(self, pixel_values, image_sizes)
        num_images = len(pixel_values)
        pixel_values = pixel_values.reshape(-1, *self.pixel_shape[-3:]).to(self.vision_tower.dtype)
        hidden = self.vision_tower(pixel_values, output_hidden_states=list(self.encoder_level_indices)).hidden_states
        levels = torch.stack([hidden[index] for index in self.encoder_level_indices], dim=1)
        grid, prefix = self.config.patch_grid, self.config.num_prefix_tokens
        if levels.shape[2] != grid.num_cells + prefix:
            raise ValueError(
                f"the encoder made {levels.shape[2]} tokens, its {grid} grid and num_prefix_tokens={prefix} make "
                f"{grid.num_cells + prefix}; correct num_prefix_tokens or the image size"
            )
        levels = levels[:, :, prefix:]
        return levels.unflatten(0, (num_images, -1)).transpose(1, 2) if self.refusion.views else levels

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        encoder_levels: Tensor | None = None,
        image_sizes: Tensor | None = None,
        return_dict: bool = True,
        tokens_per_image: int | None = None,
    ) -> VisionRememberImageFeatures:
        """Vision tokens and memory rows of N images; pass them to `generate` as `mm_encoder_outputs={"image": ...}`.

        Args:
            pixel_values: As `encode` takes them.
            encoder_levels: From `encode`, in place of pixels.
            image_sizes: As `encode` takes them, whether with pixels or levels.
            return_dict: True; `generate` passes it.
            tokens_per_image: See `grid_of`.

        Raises:
            ValueError: Both inputs or neither, levels of another model, or a number of tokens that the projector cannot make.
        """
        if (pixel_values is None) == (encoder_levels is None):
            raise ValueError("give either pixel_values or encoder_levels")
        token_grid = self.grid_of(tokens_per_image)
        levels = self.encode(pixel_values, image_sizes) if pixel_values is not None else encoder_levels
        assert levels is not None
        levels = levels.to(self.dtype)
        if levels.shape[1] != len(self.encoder_level_indices):
            raise ValueError(
                f"encoder_levels holds {levels.shape[1]} levels, this model reads {len(self.encoder_level_indices)}: "
                f"{self.encoder_level_indices}; encode the images with this model"
            )
        if levels.ndim != (5 if self.refusion.views else 4):
            raise ValueError(
                f"encoder_levels has shape {list(levels.shape)}, which is not that of images with {list(self.pixel_shape)} pixels; encode "
                "the images with this model"
            )
        if self.image_newline is not None:
            return features_of_views(self, levels, image_sizes)
        memory = None
        if self.refusion.views:
            seen = self._tokens(levels.transpose(1, 2).flatten(0, 1), tokens_per_image).unflatten(
                0, (len(levels), -1)
            )  # [N, 1 + X, V, D]
            tokens = seen[:, 0]
            memory = pack(self.refusion.memory_of_views(seen[:, 1:], token_grid))
        else:
            tokens = self._tokens(levels, tokens_per_image)
            if self.refusion.layers and self.refusion.drops_after is None:
                memory = pack(self.refusion.memory(self._features(levels, self.refusion), token_grid))
        return VisionRememberImageFeatures(pooler_output=list(tokens.unbind()), deepstack_features=memory)

    def grid_of(self, tokens_per_image: int | None) -> Grid:
        """Grid of one image's vision tokens at a compression rate.

        Args:
            tokens_per_image: Vision tokens V; None: as many as the projector makes by itself.

        Raises:
            ValueError: The projector cannot make that number, or the model reads any resolution.
        """
        if tokens_per_image is None:
            return self.token_grid
        if self.tiling.is_anyres:
            raise ValueError(
                f"tokens_per_image is {tokens_per_image}, and an any-resolution model (resolution: anyres) gives an image as many tokens "
                "as its size asks for; leave it out"
            )
        grid = self.multi_modal_projector.tokens_out(self.config.patch_grid, tokens_per_image)
        if grid.num_cells != tokens_per_image:
            raise ValueError(
                f"projector {self.config.projector['type']} makes {grid.num_cells} tokens of an image, whatever it is asked for, and "
                f"tokens_per_image is {tokens_per_image}; leave it out"
            )
        if self.refusion.has_windows:
            check_windows(self.multi_modal_projector, grid, self.config.patch_grid)
        return grid

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        encoder_levels: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, VisionRememberImageFeatures] | None = None,
        is_answer: Tensor | None = None,
        tokens_per_image: int | None = None,
        output_remember_attentions: bool = False,
        **kwargs,
    ) -> VisionRememberModelOutput:
        """Run the decoder on text and images.

        Args:
            input_ids: long[B, T] with V placeholders per image; at any resolution as many as `tiling.layout` says.
            pixel_values: Of all N images, in the order of their placeholders, as `encode` takes them.
            encoder_levels: From `encode`, in place of pixels.
            image_sizes: As `encode` takes them.
            attention_mask: long[B, T].
            position_ids: long[B, T].
            past_key_values: Cache of earlier chunks.
            inputs_embeds: float[B, T, D] in place of `input_ids`; placeholders are recognised by their embedding.
            use_cache: Return a cache.
            mm_encoder_outputs: `{"image": get_image_features(...)}` in place of images.
            is_answer: bool[B, T], tokens to be learned; methods that drop tokens then decide as they would before the first of them.
            tokens_per_image: Vision tokens V of every image; None: as many as the projector makes by itself. See `grid_of`.
            output_remember_attentions: Return the attention weights of the insertions.
            **kwargs: For the decoder.

        Raises:
            ValueError: Placeholders and vision tokens disagree (with both counts), or a chunk cuts an image that must stay whole.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        pixel_values, encoder_levels = _unless_empty(pixel_values), _unless_empty(encoder_levels)
        image = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (image, pixel_values, encoder_levels)) > 1:
            raise ValueError("give one of pixel_values, encoder_levels and mm_encoder_outputs")
        if pixel_values is not None or encoder_levels is not None:
            image = self.get_image_features(
                pixel_values, encoder_levels, image_sizes, tokens_per_image=tokens_per_image
            )
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        is_placeholder = self._placeholders(input_ids, embeds)
        tokens = (
            embeds.new_zeros(0, embeds.shape[-1]) if image is None else torch.cat(list(image.pooler_output)).to(embeds)
        )
        check_counts(is_placeholder, len(tokens), self.grid_of(tokens_per_image).num_cells)
        embeds = embeds.masked_scatter(is_placeholder[..., None], tokens)
        if image is None and self.training and torch.is_grad_enabled() and past_key_values is None:
            # Every rank of a distributed run must use every parameter, also for a batch of text alone.
            one_canvas = torch.tensor([self.tiling.canvas]) if self.tiling.is_anyres else None
            image = self.get_image_features(embeds.new_zeros(1, *self.pixel_shape), image_sizes=one_canvas)
            embeds = embeds + 0 * image.pooler_output[0].sum()
            image = without_rows(image)
        attentions: dict[int, Tensor] | None = {} if output_remember_attentions else None
        if image is not None and image.deepstack_features is not None:
            kwargs["refusion"] = state_of_chunk(
                self, image, is_placeholder, input_ids, tokens_per_image=tokens_per_image, attentions=attentions
            )
        elif self.refusion.drops_after is not None:
            kwargs["refusion"] = shortening_of_chunk(
                is_placeholder, attention_mask, is_answer, has_images=len(tokens) > 0
            )
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return VisionRememberModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            remember_attentions=None
            if attentions is None
            else tuple(attentions[layer] for layer in sorted(attentions)),
        )

    def _tokens(self, levels: Tensor, num_tokens: int | None = None) -> Tensor:
        """Vision tokens float[N, V, D] of levels float[N, L, P, C]."""
        tokens = self.multi_modal_projector(self._features(levels, self.multi_modal_projector), num_tokens)
        if self.config.vision_token_rms is not None:
            tokens = nn.functional.rms_norm(tokens, tokens.shape[-1:]) * self.config.vision_token_rms
        return tokens

    def _placeholders(self, input_ids: Tensor | None, embeds: Tensor) -> Tensor:
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        placeholder = torch.tensor(self.config.image_token_id, device=embeds.device)
        return (embeds == self.get_input_embeddings()(placeholder)).all(-1)

    def _indices(self, plugin: Any) -> tuple[int, ...]:
        return resolve_levels(plugin.levels, self.config.vision_config.num_hidden_layers, type(plugin).__name__)

    def _features(self, levels: Tensor, plugin: Any) -> VisionFeatures:
        """The levels that one plug-in reads, keyed as it names them."""
        by_index = dict(zip(self.encoder_level_indices, levels.unbind(1), strict=True))
        named = {name: by_index[index] for name, index in zip(plugin.levels, self._indices(plugin), strict=True)}
        return VisionFeatures(levels=named, grid=self.config.patch_grid)


def _unless_empty(images: Tensor | None) -> Tensor | None:
    """A batch of no images is no batch."""
    return None if images is None or len(images) == 0 else images
