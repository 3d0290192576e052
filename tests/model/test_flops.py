import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration
from vision_remember.model.flops import count_flops, prefill_flops, prompt_ids, without_weights

PROJECTOR = {"type": "avg_pool", "scale": 2}
GUIDED = {"type": "remember", "bidirectional": True, "guidance": True}


def config_of(refusion) -> VisionRememberConfig:
    return VisionRememberConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 50,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        projector=PROJECTOR,
        refusion=refusion,
        image_token_id=47,
        turn_start_token_id=48,
        turn_end_token_id=49,
    )


def prompt(config):
    return {"input_ids": prompt_ids(config, 10), "pixel_values": torch.randn(1, *config.pixel_shape)}


@pytest.mark.parametrize("inference", [False, True])
def test_a_linear_costs_two_per_weight_and_row(inference):
    with torch.inference_mode(inference):
        assert count_flops(lambda: nn.Linear(5, 7)(torch.randn(2, 3, 5))) == 2 * (2 * 3) * 5 * 7


def test_a_convolution_costs_two_per_weight_and_output_pixel():
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    assert count_flops(lambda: depthwise(torch.randn(1, 6, 4, 5))) == 2 * (4 * 5) * (6 * 3 * 3)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_costs_two_products_over_all_pairs(causal):
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    flops = count_flops(lambda: F.scaled_dot_product_attention(q, k, k, is_causal=causal, enable_gqa=True))
    assert flops == 2 * 2 * (4 * 6 * 6 * 8)


def test_what_is_not_counted_runs_as_always():
    seen = []
    count_flops(lambda: seen.append((torch.arange(6) % 4 == 1).nonzero()))
    assert seen[0].flatten().tolist() == [1, 5]


@pytest.mark.parametrize("refusion", [{"type": "none"}, {"type": "remember"}, GUIDED], ids=["none", "v1", "v2"])
def test_a_model_without_weights_costs_what_torch_counts_while_the_real_one_runs(refusion):
    config = config_of(refusion)
    real = VisionRememberForConditionalGeneration(config).eval()
    real.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            real(**prompt(config), logits_to_keep=1)
    hollow = without_weights(config)
    assert prefill_flops(hollow, prompt(config)) == counter.get_total_flops() > 0
    assert sum(parameter.untyped_storage().nbytes() for parameter in hollow.parameters()) == 4 * len(
        list(hollow.parameters())
    )


def test_counting_leaves_a_real_model_as_it_was():
    config = config_of(GUIDED)
    model = VisionRememberForConditionalGeneration(config).eval()
    inputs = prompt(config)
    with torch.no_grad():
        before = model(**inputs).logits
        assert prefill_flops(model, inputs) == prefill_flops(without_weights(config), inputs)
        assert torch.equal(model(**inputs).logits, before)


def test_a_prompt_has_as_many_text_tokens_as_asked_for():
    config = config_of({"type": "none"})
    ids = prompt_ids(config, 10)[0].tolist()
    assert len(ids) == 14 and ids.count(config.image_token_id) == 4
    assert ids[0] == config.turn_start_token_id and ids[-1] == config.turn_end_token_id
