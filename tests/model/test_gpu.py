"""What a GPU must not change: it says what a CPU says, whatever cache it keeps and however it computes."""

import pytest
import torch

from tests.model.conftest import METHODS, MIXED, NONE, stir
from tests.model.test_contract import PAIRS, batch_of, logits_of
from tests.model.test_contract import build as build_pair
from tests.model.test_generation_ways import PROMPT, assert_same, greedy
from vision_remember.evaluation.tasks import load_task
from vision_remember.model.engine import Engine

pytestmark = pytest.mark.gpu
TOLERANCE = 1e-4  # float32 sums in another order


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """torch lets convolutions of float32 round to TF32 by default, which keeps three decimal digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(inputs):
    return {name: tensor.to("cuda") for name, tensor in inputs.items()}


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_of_plug_ins_says_what_it_says_on_a_cpu(pair):
    model = build_pair(*pair)
    inputs = batch_of(model)
    expected = logits_of(model, inputs)
    found = logits_of(model.to("cuda"), on_gpu(inputs))
    assert (found.cpu() - expected).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_insertions_that_are_zero_change_nothing_bit_for_bit(build, processor, method):
    inputs = on_gpu(processor.apply_chat_template(MIXED[:3], **PROMPT))
    with_it, without = (build(options).to("cuda")(**inputs).logits for options in (METHODS[method], NONE))
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_a_cpu(build, processor, method):
    inputs, gradients = dict(processor.apply_chat_template(MIXED[:3], **PROMPT)), []
    for device in ("cpu", "cuda"):
        model = stir(build(METHODS[method])).to(device)
        there = {name: tensor.to(device) for name, tensor in inputs.items()}
        model(**there, labels=there["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    here, there = gradients
    assert here.keys() == there.keys()
    for name, gradient in here.items():
        assert (there[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("cache", ["offloaded", "static"])
@pytest.mark.parametrize("method", METHODS)
def test_offloaded_and_compiled_static_caches_do_not_change_the_answer(build, processor, method, cache):
    model = stir(build(METHODS[method])).to("cuda")
    inputs = on_gpu(processor.apply_chat_template(MIXED[:3], **PROMPT))
    assert_same(greedy(model, inputs, cache_implementation=cache), greedy(model, inputs), TOLERANCE)


def test_the_shipped_model_answers_as_on_a_cpu():
    task = {"type": "synthetic_documents", "count": 10, "split": "test", "seed": 3}
    requests = [question.request() for question in load_task(task)]
    here, there = (Engine.load("embedded/llava_vr_tiny", device=device) for device in ("cpu", None))
    assert there.model.device.type == "cuda"
    assert [answer.text for answer in there.answer(requests)] == [answer.text for answer in here.answer(requests)]
