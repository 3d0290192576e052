"""CKA is 1 for the same thing turned and scaled, about 0 for unrelated things; mean and detail add up to the patches."""

import pytest
import torch

from vision_remember.analysis.similarity import cka, evenly_chosen, linear_kernel, mean_and_detail
from vision_remember.geometry import Grid, gather_windows, windows


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compared(x: torch.Tensor, y: torch.Tensor) -> float | None:
    return cka(linear_kernel(x), linear_kernel(y))


def test_turning_scaling_and_moving_change_nothing() -> None:
    x = features(50, 6)
    turn = torch.linalg.qr(features(6, 6, seed=1)).Q
    assert compared(x, 1e-4 * x @ turn + 5) == pytest.approx(1, abs=1e-5)


def test_unrelated_features_score_zero_even_when_there_are_more_of_them_than_things() -> None:
    scores = [compared(features(40, 200, seed=seed), features(40, 300, seed=seed + 100)) for seed in range(20)]
    mean = sum(score for score in scores if score is not None) / len(scores)
    assert abs(mean) < 0.02  # the biased estimate is above 0.8 here


def test_shared_features_among_others_score_between() -> None:
    x = features(200, 4)
    score = compared(torch.cat([x, features(200, 4, seed=1)], dim=1), torch.cat([x, features(200, 4, seed=2)], dim=1))
    assert score is not None and 0.3 < score < 0.7


def test_what_never_differs_has_no_similarity() -> None:
    assert compared(features(9, 3), torch.full((9, 3), 0.1)) is None


def test_different_numbers_of_things_are_refused() -> None:
    with pytest.raises(ValueError, match="9 and 8"):
        compared(features(9, 3), features(8, 3))


@pytest.mark.parametrize(("fine", "coarse"), [(Grid(6, 6), Grid(2, 2)), (Grid(7, 5), Grid(3, 2))])
def test_mean_and_detail_add_up_to_the_patches(fine: Grid, coarse: Grid) -> None:
    x, own = features(2, fine.num_cells, 3), windows(fine, coarse)
    mean, detail = mean_and_detail(x, fine, coarse)
    detail = detail.unflatten(2, (-1, 3))
    valid = own.valid[..., None]
    torch.testing.assert_close((mean[:, :, None] + detail) * valid, gather_windows(x, own) * valid)
    torch.testing.assert_close(detail.sum(2), torch.zeros_like(mean), atol=1e-5, rtol=0)


def test_a_token_of_one_patch_has_no_detail() -> None:
    mean, detail = mean_and_detail(features(2, 9, 3), Grid(3, 3), Grid(3, 3))
    assert not detail.any()
    torch.testing.assert_close(mean, features(2, 9, 3))


def test_chosen_places_are_spread_and_distinct() -> None:
    assert evenly_chosen(5, most=9).tolist() == [0, 1, 2, 3, 4]
    chosen = evenly_chosen(100, most=9)
    assert (chosen[0], chosen[-1]) == (0, 99) and len(chosen.unique()) == 9
