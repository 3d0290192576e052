"""Share and density are what they say on attention laid out by hand: even looks, a single look, padding, two rows."""

import pytest
import torch

from vision_remember.analysis.attention_density import text_to_vision


def even(is_token: torch.Tensor) -> torch.Tensor:
    """Attention that is spread evenly over all real positions up to its own, `[B, 2, T, T]`."""
    causal = torch.ones(is_token.shape[1], is_token.shape[1]).tril().bool() & is_token[:, None]
    return (causal / causal.sum(-1, keepdim=True).clamp(min=1))[:, None].expand(-1, 2, -1, -1)


def test_an_even_look_has_density_one_whatever_the_padding() -> None:
    is_token = torch.tensor([[True] * 8, [False] * 2 + [True] * 6])
    is_vision = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]]).bool()
    share, density = text_to_vision(even(is_token), is_vision, is_token)
    torch.testing.assert_close(density, torch.ones(2))
    torch.testing.assert_close(share, torch.tensor([(4 / 6 + 4 / 7 + 4 / 8) / 3, 4 / 6]))


def test_text_before_the_image_is_not_asked() -> None:
    is_token = torch.ones(1, 4).bool()
    is_vision = torch.tensor([[False, True, True, False]])
    attention = torch.zeros(1, 1, 4, 4)
    attention[0, 0, 3, 1:3] = 0.4  # the only text after the image
    share, density = text_to_vision(attention, is_vision, is_token)
    torch.testing.assert_close(share, torch.tensor([0.8]))
    torch.testing.assert_close(density, torch.tensor([0.8 / (2 / 4)]))


@pytest.mark.parametrize("is_vision", [[False, True, True], [False, False, False]])
def test_a_row_without_text_after_an_image_is_refused(is_vision: list[bool]) -> None:
    mask = torch.tensor([is_vision])
    with pytest.raises(ValueError, match="row 0"):
        text_to_vision(torch.zeros(1, 1, 3, 3), mask, torch.ones_like(mask))
