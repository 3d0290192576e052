from types import SimpleNamespace

import pytest
import torch

from vision_remember.model.refusals import check_assistant, check_padding


def test_only_a_row_that_ends_in_padding_is_refused_and_named():
    check_padding(None)
    check_padding({"full_attention": None})
    check_padding(torch.ones(2, 1, 4, 4))
    check_padding(torch.tensor([[0, 0, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match="prompt 1 of 2 is padded on the right"):
        check_padding(torch.tensor([[0, 1, 1], [1, 1, 0]]))


def test_only_assistants_that_see_are_refused():
    plain = SimpleNamespace(assistant_early_exit=None)
    check_assistant(plain, None)
    check_assistant(plain, SimpleNamespace(input_modalities="text"))
    with pytest.raises(ValueError, match="assistant_model SimpleNamespace would guess without the images"):
        check_assistant(plain, SimpleNamespace(input_modalities=("image", "text")))
    with pytest.raises(ValueError, match="assistant_early_exit"):
        check_assistant(SimpleNamespace(assistant_early_exit=2), None)
