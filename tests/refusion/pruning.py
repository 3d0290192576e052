"""A padded batch for methods that drop tokens, the rule of FastV by brute force, and a decoder that hides instead of dropping."""

import torch

from tests.refusion import test_attach
from tests.refusion.scene import BACKBONES, T, build
from vision_remember.refusion import Shortening
from vision_remember.refusion.attach import attach

DEPTH, D = BACKBONES.decoder_layers, BACKBONES.text_width
K = 2  # layers that see everything
# Rows of a padded batch of 4: vision tokens and valid length, counted from the first token of the row.
ROWS = ((range(2, 9), 16), ((), 12), ((*range(5), *range(7, 14)), T), (range(1, 12), 13))
TOLERANCE = 1e-5  # float32 sums over fewer keys, in another order


def batch(side, extra=0):
    """Embeddings float[B, T + extra, D], and which are valid and which are vision tokens, bool[B, T]."""
    valid, vision = torch.zeros(len(ROWS), T, dtype=torch.bool), torch.zeros(len(ROWS), T, dtype=torch.bool)
    for row, (tokens, length) in enumerate(ROWS):
        start = T - length if side == "left" else 0
        valid[row, start : start + length] = True
        vision[row, [start + token for token in tokens]] = True
    embeds = torch.randn(len(ROWS), T + extra, D, generator=torch.Generator().manual_seed(3))
    return embeds, valid, vision


def last_valid(valid):
    return torch.tensor([max(row.nonzero().flatten().tolist()) for row in valid])


def state_of(valid, vision):
    return Shortening(valid=valid, vision=vision, asking=last_valid(valid))


def language_model(family="qwen2"):
    """A decoder whose attention is far from even, so that positions and masks matter."""
    return test_attach.language_model(family, initializer_range=0.2)


def dropping(family="qwen2", **options):
    model = language_model(family)
    attach(model, build("fastv", full_layers=K, **options))
    return model


def plain(family="qwen2"):
    model = language_model(family)
    model.set_attn_implementation("eager")
    return model


def brute_force(model, embeds, valid, vision, ratio=0.5):
    """For every row, one after the other: the vision tokens that its last token looks at most, and everything that is no vision."""
    attention = model(inputs_embeds=embeds, attention_mask=valid.long(), output_attentions=True).attentions[K - 1]
    kept = []
    for row in range(len(embeds)):
        tokens = vision[row].nonzero().flatten().tolist()
        score = {j: sum(head[last_valid(valid)[row], j].item() for head in attention[row]) for j in tokens}
        best = sorted(tokens, key=lambda j: (-score[j], j))[: round(len(tokens) * (1 - ratio))]  # noqa: B023
        kept.append([j for j in range(T) if valid[row, j] and (not vision[row, j] or j in best)])
    return kept


def masked_logits(model, embeds, valid, kept):
    """The whole decoder, never shortened: from layer K on, nothing may look at a token that is not in ``kept``."""
    decoder, length = model.get_decoder(), embeds.shape[1]
    sees = torch.ones(length, length, dtype=torch.bool).tril() & valid[:, None]
    is_left = torch.zeros_like(valid)
    for row, places in enumerate(kept):
        is_left[row, places] = True
    hidden, positions = embeds, torch.arange(length)[None]
    for number, layer in enumerate(decoder.layers):
        allowed = sees if number < K else sees & is_left[:, None]
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=decoder.rotary_emb(hidden, positions))
    norm = decoder.final_layernorm if hasattr(decoder, "final_layernorm") else decoder.norm
    return model.lm_head(norm(hidden))


def prefill(model, embeds, valid, state, **options):
    return model(inputs_embeds=embeds[:, :T], attention_mask=valid.long(), refusion=state, **options).logits


def at(logits, kept):
    return torch.cat([logits[row, places] for row, places in enumerate(kept)])


def places_of(state):
    return [[place for place in row if place >= 0] for row in state.places.tolist()]
