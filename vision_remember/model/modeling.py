"""LLaVA-VR as a normal `transformers` model: trains, generates, saves and loads like any other.

    model = VisionRememberForConditionalGeneration.from_backbones(
        "openai/clip-vit-large-patch14-336", "Qwen/Qwen2-1.5B", projector={"type": "avg_pool"}, refusion={"type": "remember"}
    )
    processor = VisionRememberProcessor.from_backbones("openai/clip-vit-large-patch14-336", "Qwen/Qwen2-1.5B", model.config)

Source: layout and names follow transformers/models/llava_next/modeling_llava_next.py.
"""

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from vision_remember.model.backbones import assemble
from vision_remember.model.base import HEAD, VisionRememberModel
from vision_remember.model.batch import IGNORED_LABEL
from vision_remember.model.causal_lm import LogitRule
from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.outputs import VisionRememberCausalLMOutput, VisionRememberImageFeatures
from vision_remember.model.parts import Parts, split_parameters
from vision_remember.model.pretrained import VisionRememberPreTrainedModel
from vision_remember.model.refusals import check_assistant, check_padding
from vision_remember.model.shortening import check_generation

__all__ = ["VisionRememberForConditionalGeneration", "VisionRememberModel"]


class VisionRememberForConditionalGeneration(VisionRememberPreTrainedModel, GenerationMixin):
    """The model with its LM head: trains, generates, saves and loads like any other."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: VisionRememberConfig):
        super().__init__(config)
        self.model = VisionRememberModel(config)
        self._finish_logits = LogitRule(config.text_config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=self._finish_logits.has_bias
        )
        self.post_init()
        self._keys_to_ignore_on_load_unexpected.discard(HEAD)  # inherited from the part without a head

    @classmethod
    def from_backbones(
        cls,
        vision: str,
        text: str,
        *,
        projector: dict | None = None,
        refusion: dict | None = None,
        resolution: dict | None = None,
        seed: int = 0,
    ) -> "VisionRememberForConditionalGeneration":
        """Assemble a model from a pretrained encoder and a pretrained causal LM; see `backbones.assemble`."""
        return assemble(cls, vision, text, projector=projector, refusion=refusion, resolution=resolution, seed=seed)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    @property
    def encoder_level_indices(self) -> tuple[int, ...]:
        """Encoder hidden states that the model reads, in the order of `encode`."""
        return self.model.encoder_level_indices

    def encode(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Encoder hidden states float[N, L, P, C] of float[N, 3, height, width]; see `VisionRememberModel.encode`."""
        return self.model.encode(pixel_values, image_sizes)

    def get_image_features(self, *args, **kwargs) -> VisionRememberImageFeatures:
        """Vision tokens and memory rows of images; see `VisionRememberModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs) -> None:
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        check_assistant(generation_config, generation_mode_kwargs.get("assistant_model"))
        if self.model.refusion.drops_after is not None:
            check_generation(generation_mode, generation_config, self.config.refusion["type"])

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs):
        told = {key: value for key, value in model_kwargs.items() if key == "tokens_per_image"}
        # What encodes the images takes its arguments away, and the decoder must know this one, too.
        return {**super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs), **told}

    def _validate_model_kwargs(self, model_kwargs: dict) -> None:
        super()._validate_model_kwargs(model_kwargs)
        check_padding(model_kwargs.get("attention_mask"))

    def parts(self) -> Parts:
        """Named parameters by part: encoder, projector, refusion, language_model. Every parameter once, in exactly one part."""
        return split_parameters(self)

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, VisionRememberImageFeatures] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        tokens_per_image: int | None = None,
        **kwargs,
    ) -> VisionRememberCausalLMOutput:
        """Logits and, with labels, the loss; other arguments as in `VisionRememberModel.forward`.

        Args:
            labels: long[B, T], -100 where nothing is to be said; shifted here. Without any target the loss is 0.
            logits_to_keep: Last positions to compute logits for; 0 for all.
            num_items_in_batch: Target tokens that the sum of losses is divided by; None: those of this call.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            encoder_levels=encoder_levels,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            is_answer=None if labels is None else labels != IGNORED_LABEL,
            tokens_per_image=tokens_per_image,
            **kwargs,
        )
        logits = self._finish_logits(self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)))
        loss = None
        if labels is not None:
            if num_items_in_batch is None:
                num_items_in_batch = (labels[:, 1:] != IGNORED_LABEL).sum().clamp(min=1)
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.text_config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return VisionRememberCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            remember_attentions=outputs.remember_attentions,
        )
