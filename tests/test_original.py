"""The names of an original become ours, strictly: everything that does not fit is named, and then nothing is loaded."""

import pytest
import torch
from torch import nn

from vision_remember.original import load_original

RENAMES = {
    r"old\.b(\d)\.(conv|fc)\.bn\.(weight|bias)": r"\2.\1.norm.\3",
    r"tables?": "table",
    r"up\.(weight|bias)": r"up.\1",
    r"(weight|bias)_of_up": r"up.\1",
    r"elsewhere\.(.*)": r"nowhere.\1",
}


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(2, 3)
        self.conv = nn.ModuleList([nn.ModuleDict({"norm": nn.LayerNorm(2)}) for _ in range(2)])
        self.register_buffer("table", torch.zeros(4))


def original():
    norms = {
        f"old.b{i}.conv.bn.{kind}": torch.full((2,), float(i + 5)) for i in range(2) for kind in ("weight", "bias")
    }
    return {**norms, "up.weight": torch.full((3, 2), 3.0), "up.bias": torch.full((3,), 4.0), "table": torch.arange(4.0)}


def refusal(state_dict, prefixes=("model.", "model.part.")):
    module = Module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_original(module, state_dict, RENAMES, prefixes=prefixes)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "model.", "model.part."])
def test_weights_arrive_under_any_of_the_prefixes(prefix):
    module = Module()
    load_original(
        module,
        {prefix + name: value for name, value in original().items()},
        RENAMES,
        prefixes=("model.", "model.part."),
    )
    assert (module.up.weight == 3).all() and (module.up.bias == 4).all()
    assert [norm["norm"].bias[0].item() for norm in module.conv] == [5.0, 6.0]
    assert torch.equal(module.table, torch.arange(4.0))


def test_weights_take_the_dtype_of_the_module_and_still_learn():
    module = Module().to(torch.bfloat16)
    load_original(module, {name: value.double() for name, value in original().items()}, RENAMES)
    assert module.up.weight.dtype is torch.bfloat16 and module.up.weight.requires_grad


def test_a_weight_may_come_by_any_of_its_names():
    module, state_dict = Module(), original()
    state_dict["weight_of_up"] = state_dict.pop("up.weight")
    load_original(module, state_dict, RENAMES)
    assert (module.up.weight == 3).all()


def test_a_table_may_be_left_out():
    module, state_dict = Module(), original()
    del state_dict["table"]
    load_original(module, state_dict, RENAMES)
    assert not module.table.any()


def test_all_faults_are_named_at_once():
    state_dict = {f"model.{name}": value for name, value in original().items()}
    del state_dict["model.old.b1.conv.bn.bias"], state_dict["model.up.bias"]
    state_dict["model.up.weight"] = torch.zeros(2, 3)
    state_dict["lm_head"] = state_dict["model.elsewhere.x"] = state_dict["old.b7.conv.bn.bias"] = torch.zeros(2)
    message = refusal(state_dict)
    assert "8 original weights do not fit the 7 of this Module" in message
    # both missing names are the original's, under the prefix that the others have
    assert "\n  missing: model.up.bias, model.old.b1.conv.bn.bias" in message
    assert "\n  unexpected: lm_head, model.elsewhere.x, old.b7.conv.bn.bias" in message
    assert "\n  misshapen: model.up.weight is [2, 3], needs [3, 2]" in message


def test_two_names_for_one_weight_are_refused():
    assert "given twice: weight_of_up and up.weight" in refusal({**original(), "weight_of_up": torch.zeros(3, 2)})


def test_a_missing_name_is_that_of_the_family_that_was_used():
    state_dict = original()
    del state_dict["up.weight"], state_dict["up.bias"]
    assert "missing: bias_of_up" in refusal({**state_dict, "weight_of_up": torch.zeros(3, 2)})
    assert "missing: up.weight, up.bias" in refusal(state_dict)


def test_nothing_at_all_names_everything():
    message = refusal({})
    assert all(name in message for name in original() if name != "table")


def test_a_missing_name_that_cannot_be_read_backwards_is_ours():
    module = nn.Linear(1, 1, bias=False)
    with pytest.raises(ValueError, match="missing: weight$"):
        load_original(module, {}, {r"(a|b)?weights": "weight", r"\d": "weight"})
