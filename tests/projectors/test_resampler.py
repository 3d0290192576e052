"""The perceiver resampler by hand, latent by latent and head by head, and against transformers."""

import pytest
import torch
from transformers import Idefics2Config, MistralConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector

C, D, INNER, LATENTS, DEPTH, HEADS, KV_HEADS, K = 3, 6, 7, 4, 2, 4, 2, 5
OPTIONS = {
    "type": "resampler",
    "num_latents": LATENTS,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_kv_heads": KV_HEADS,
    "head_width": K,
    "intermediate_size": INNER,
}


def shapes():
    found = {
        "modality_projection.gate_proj.weight": (INNER, C),
        "modality_projection.up_proj.weight": (INNER, C),
        "modality_projection.down_proj.weight": (D, INNER),
        "perceiver_resampler.latents": (LATENTS, D),
        "perceiver_resampler.norm.weight": (D,),
    }
    for i in range(DEPTH):
        layer = f"perceiver_resampler.layers.{i}"
        for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
            found[f"{layer}.{norm}.weight"] = (D,)
        found[f"{layer}.self_attn.q_proj.weight"] = (HEADS * K, D)
        found[f"{layer}.self_attn.k_proj.weight"] = found[f"{layer}.self_attn.v_proj.weight"] = (KV_HEADS * K, D)
        found[f"{layer}.self_attn.o_proj.weight"] = (D, HEADS * K)
        found[f"{layer}.mlp.gate_proj.weight"] = found[f"{layer}.mlp.up_proj.weight"] = (4 * D, D)
        found[f"{layer}.mlp.down_proj.weight"] = (D, 4 * D)
    return found


def rms(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def gated(x, weights, name):
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (parity.silu(x @ gate.T) * (x @ up.T)) @ down.T


def plain(weights, features):
    images = []
    for number, image in enumerate(features.level(-1)):
        context = gated(image, weights, "modality_projection")
        if features.valid is not None:
            context = context[features.valid[number]]
        latents = weights["perceiver_resampler.latents"]
        for i in range(DEPTH):
            layer = f"perceiver_resampler.layers.{i}"
            wq, wk, wv, wo = (weights[f"{layer}.self_attn.{x}_proj.weight"] for x in "qkvo")
            normed = rms(latents, weights[f"{layer}.input_latents_norm.weight"])
            keys = torch.cat([rms(context, weights[f"{layer}.input_context_norm.weight"]), normed])
            updated = []
            for latent, query in zip(latents, normed, strict=True):
                seen = []
                for head in range(HEADS):
                    mine, shared = slice(head * K, (head + 1) * K), head * KV_HEADS // HEADS
                    its = slice(shared * K, (shared + 1) * K)
                    scores = torch.exp((keys @ wk.T)[:, its] @ (wq @ query)[mine] / K**0.5)
                    seen.append(scores / scores.sum() @ (keys @ wv.T)[:, its])
                updated.append(latent + wo @ torch.cat(seen))
            latents = torch.stack(updated)
            latents = latents + gated(
                rms(latents, weights[f"{layer}.post_attention_layernorm.weight"]), weights, f"{layer}.mlp"
            )
        images.append(rms(latents, weights["perceiver_resampler.norm.weight"]))
    return torch.stack(images)


@pytest.mark.parametrize("grid", [grid for grid, _ in parity.GRIDS], ids=str)
def test_latents_look_at_the_patches_and_at_each_other(grid):
    parity.agrees(OPTIONS, shapes(), plain, grid, C, D)


def test_padding_patches_are_not_seen():
    valid = torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.6
    parity.agrees(OPTIONS, shapes(), plain, Grid(4, 6), C, D, valid=valid)


def test_the_weights_of_idefics2_load_or_are_refused_by_name():
    parity.loads_strictly(OPTIONS, shapes(), C, D, prefixes=("model.connector.", "connector."))


def test_idefics2_of_transformers_gives_the_same_tokens():
    config = Idefics2Config(
        vision_config={"hidden_size": 6, "num_attention_heads": 2},
        text_config=MistralConfig(hidden_size=8, intermediate_size=10, num_attention_heads=2, num_key_value_heads=2),
        perceiver_config={
            "hidden_size": 8,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 6,
            "num_key_value_heads": 2,
        },
    )
    torch.manual_seed(0)
    theirs = Idefics2Connector(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    options = {
        "num_latents": 5,
        "depth": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 6,
        "intermediate_size": 10,
    }
    ours = build_projector("resampler", feature_width=6, text_width=8, **options).double()
    ours.load_original({f"model.connector.{name}": w for name, w in theirs.state_dict().items()})
    valid = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) < 0.6
    seen = parity.see((-1,), Grid(3, 4), 6, valid=valid)
    # Their RMSNorm computes in float32 whatever the dtype.
    torch.testing.assert_close(ours(seen), theirs(seen.level(-1), valid), rtol=1e-5, atol=1e-5)


def test_the_latents_start_apart_unless_the_start_of_the_original_is_asked_for():
    seen = parity.see((-1,), Grid(3, 4), C)
    apart = build_projector(**OPTIONS, feature_width=C, text_width=D).double()(seen)
    equal = build_projector(**OPTIONS, init="ones", feature_width=C, text_width=D).double()(seen)
    assert not torch.allclose(apart[:, :1], apart)
    torch.testing.assert_close(equal[:, :1].expand_as(equal), equal)


def test_the_inner_width_is_that_of_the_original_language_model_unless_given():
    projector = build_projector("resampler", feature_width=C, text_width=4096 // 64)
    assert projector.projection.gate.out_features == 14336 // 64


def test_the_number_of_tokens_is_fixed():
    projector = build_projector(**OPTIONS, feature_width=C, text_width=D)
    assert projector.tokens_out(Grid(24, 24)) == Grid(2, 2) and projector.tokens_out(Grid(4, 24)) == Grid(1, 4)
    with pytest.raises(ValueError, match="makes 4 tokens of any image, not 9"):
        projector.tokens_out(Grid(24, 24), num_tokens=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "3 heads cannot share 2 key heads"),
        ({"depth": 0}, "depth is at least 1, got 0"),
        ({"intermediate_size": 0}, "intermediate_size is at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_projector(**{**OPTIONS, **options}, feature_width=C, text_width=D)
