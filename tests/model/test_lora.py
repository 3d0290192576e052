"""PEFT's LoRA on the language model, with projector and re-fusion trained whole beside it, then merged into an ordinary model."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.model.conftest import METHODS, MIXED, answered, page
from tests.model.test_generation_ways import FASTV, PROMPT

peft = pytest.importorskip("peft", reason="peft is not installed")

CHATS = [answered("What is the total?", "42 euros", page(1)), answered("Compare", "Equal", page(2), page(3))]
OURS = ["refusion", "refusion_before", "multi_modal_projector"]
TOLERANCE = 5e-5  # float32: merged, W + BA is added once; without, x W + x B A at every call


@pytest.mark.parametrize("method", [*METHODS, "fastv"])
def test_lora_trains_saves_loads_and_merges(build, processor, tmp_path, method):
    model = build((METHODS | {"fastv": FASTV})[method])
    model.save_pretrained(tmp_path / "base")
    names = [name for name, _ in model.named_parameters()]
    inserted = {name for part in ("projector", "refusion") for name, _ in model.parts()[part]}
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=OURS, task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model, config).train()
    trained = [(name, parameter) for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    whole = {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name, _ in trained}
    assert {name for name in whole if "lora_" not in name} == inserted, "ours are trained whole, nothing else is"

    batch = processor.pad([processor.encode(chat) for chat in CHATS], side="right")
    optimizer = torch.optim.SGD([parameter for _, parameter in trained], lr=0.05)
    losses, moved = [], set()
    for _ in range(4):
        optimizer.zero_grad()
        loss = tuned(**batch, use_cache=False).loss
        loss.backward()
        moved |= {name for name, parameter in trained if parameter.grad is not None and parameter.grad.any()}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {name for name, _ in trained if name not in moved and not name.endswith("no_text")} == set()

    expected = tuned.eval()(**batch, use_cache=False).logits
    tuned.save_pretrained(tmp_path / "adapter")
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".json", ".safetensors", ".md"}
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    weights, loaded = dict(tuned.named_parameters()), dict(again.named_parameters())
    assert weights.keys() == loaded.keys() and all(torch.equal(weights[name], loaded[name]) for name in weights)
    assert (again(**batch, use_cache=False).logits - expected).abs().max() <= TOLERANCE
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    said = again.generate(**inputs, max_new_tokens=3, do_sample=False)

    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert [name for name, _ in merged.named_parameters()] == names
    assert (merged(**batch, use_cache=False).logits - expected).abs().max() <= TOLERANCE
    assert torch.equal(merged.generate(**inputs, max_new_tokens=3, do_sample=False), said)
