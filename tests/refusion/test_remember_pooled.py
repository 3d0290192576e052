"""The control of remember's parameters: as many of them, and nothing to see inside a window."""

import pytest
import torch

from tests.refusion.scene import BACKBONES, COARSE, FINE, build, features
from vision_remember.geometry import VisionFeatures, gather_windows, windows
from vision_remember.refusion import Backbones, build_refusion


def shapes(name: str) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in build(name).insertion(0).state_dict().items()}


def test_it_has_the_parameters_of_remember():
    assert shapes("remember_pooled") == shapes("remember")


def test_a_wider_feed_forward_makes_up_for_what_is_idle():
    """At the shapes of the tiny recipes: 128 wide, heads of 32, three levels of 128."""
    widths = {"text_width": 128, "head_width": 32, "feature_width": 128}
    tiny = Backbones(**widths, encoder_layers=6, decoder_layers=6, num_heads=4, num_kv_heads=4)
    options = {"layers": [1], "levels": [1, 2, 3], "num_heads": 12, "num_kv_heads": 4}
    plain = build_refusion({"type": "remember", **options}, tiny).insertion(1)
    pooled = build_refusion({"type": "remember_pooled", **options, "ffn_ratio": 3.0}, tiny)
    at_work = [p.numel() for name, p in pooled.insertion(1).named_parameters() if not name.startswith(pooled.idle)]
    assert sum(at_work) == pytest.approx(sum(p.numel() for p in plain.parameters()), rel=0.003)


def test_every_slot_of_a_window_holds_the_mean_of_its_patches():
    pooled, plain = (build(name, memory_width=0) for name in ("remember_pooled", "remember"))
    given = features(plain)
    seen, whole = pooled.memory(given, COARSE), plain.memory(given, COARSE)
    width = len(plain.levels) * BACKBONES.feature_width
    rows, patches = (memory.rows.unflatten(2, (-1, width)) for memory in (seen, whole))
    for image, token in ((0, 0), (1, 1)):
        own = patches[image, token][whole.valid[image, token]]
        torch.testing.assert_close(rows[image, token], own.mean(dim=0).expand_as(rows[image, token]))
    assert torch.equal(seen.valid, whole.valid) and torch.equal(seen.place, whole.place)


def test_what_reads_the_memory_reads_the_mean():
    read, raw = build("remember_pooled"), build("remember_pooled", memory_width=0)
    given = features(raw)
    means = raw.memory(given, COARSE).rows.unflatten(2, (-1, raw.memory_width))
    torch.testing.assert_close(read.memory(given, COARSE).rows, read.reader(means).flatten(2))


def test_a_patch_that_is_not_real_does_not_count():
    pooled = build("remember_pooled")
    given = features(pooled)
    own = windows(given.grid, COARSE)
    valid = torch.ones(len(next(iter(given.levels.values()))), FINE.num_cells, dtype=torch.bool)
    valid[0, own.index[0, 0]] = False
    hidden = VisionFeatures(levels=given.levels, grid=given.grid, valid=valid)
    changed = {level: torch.where(valid[..., None], x, 100 * x.flip(-1)) for level, x in given.levels.items()}
    other = VisionFeatures(levels=changed, grid=given.grid, valid=valid)
    assert torch.equal(pooled.memory(hidden, COARSE).rows, pooled.memory(other, COARSE).rows)
    assert gather_windows(valid, own).any(dim=-1).all()
