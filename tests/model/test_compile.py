"""`torch.compile` makes one graph of a prefill and one of a decode step: nothing of ours breaks it.

The back end is dynamo's own ("eager"): what is tested is the graph, not the code made of it.
"""

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from tests.model.conftest import METHODS, MIXED, V1, V2, ask, page, stir
from tests.model.hosts import build_host, prompts
from tests.model.test_generation_ways import FASTV, PROMPT, assert_same, greedy
from vision_remember import attach

TOLERANCE = 1e-5  # float32 sums in another order: inside a graph the decoder's mask is made in another way
# Tracing takes seconds: by default the method with all there is, the others when slow.
CHOSEN = [name if name == "v2" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model):
    return torch.compile(model.forward, backend="eager", fullgraph=True)


@torch.no_grad()
@pytest.mark.parametrize("method", CHOSEN)
def test_prefill_and_decode_are_one_graph_each(build, processor, method):
    model = stir(build(METHODS[method]))
    inputs = processor.apply_chat_template(MIXED[:3], **PROMPT)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
    found = []
    for forward in (model, compiled(model)):
        cache = DynamicCache(config=model.config.text_config)
        prefill = forward(**inputs, past_key_values=cache, use_cache=True).logits
        step = {"input_ids": torch.full((3, 1), 7), "attention_mask": mask, "past_key_values": cache}
        found.append(torch.cat([prefill, forward(**step, use_cache=True).logits], dim=1))
    assert (found[0] - found[1]).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("method", CHOSEN)
def test_generate_compiles_its_steps_on_a_static_cache(build, processor, method):
    model = stir(build(METHODS[method]))
    inputs = processor.apply_chat_template(MIXED[:3], **PROMPT)
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True  # generate leaves CPUs alone otherwise
    torch._dynamo.utils.counters.clear()
    found = greedy(model, inputs, cache_implementation="static", compile_config=config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_same(found, greedy(model, inputs), TOLERANCE)


@torch.no_grad()
@pytest.mark.slow
def test_a_compiled_prefill_still_refuses_to_cut_an_image(build, processor):
    model = stir(build(V2))
    inputs = processor.apply_chat_template(ask("What?", page(1)), **PROMPT)
    features = model.get_image_features(inputs["pixel_values"])
    forward = compiled(model)
    forward(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features}, use_cache=False)
    end = inputs["input_ids"][0].tolist().index(processor.image_token_id) + 2
    part = type(features)(
        pooler_output=[features.pooler_output[0][:2]],
        deepstack_features=[[rows[0][:2]] for rows in features.deepstack_features],
    )
    with pytest.raises((RuntimeError, ValueError)):
        forward(input_ids=inputs["input_ids"][:, :end], mm_encoder_outputs={"image": part}, use_cache=False)


@torch.no_grad()
@pytest.mark.slow
def test_fastv_decodes_in_one_graph_and_prefills_in_pieces(build, processor):
    """How many tokens stay is read from the prompt, so the drop itself cannot be traced; around it the pieces compile."""
    model = build(FASTV)
    inputs = processor.apply_chat_template(MIXED[:3], **PROMPT)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
    found = []
    for prefill, decode in ((model, model), (torch.compile(model.forward, backend="eager"), compiled(model))):
        cache = DynamicCache(config=model.config.text_config)
        first = prefill(**inputs, past_key_values=cache, use_cache=True).logits
        step = {"input_ids": torch.full((3, 1), 7), "attention_mask": mask, "past_key_values": cache}
        found.append(torch.cat([first, decode(**step, use_cache=True).logits], dim=1))
    assert (found[0] - found[1]).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.slow
def test_a_decode_step_on_a_static_cache_is_one_graph(build, processor):
    model = stir(build(V2))
    inputs = processor.apply_chat_template(MIXED[:3], **PROMPT)
    found = []
    for forward in (model, compiled(model)):
        cache = StaticCache(config=model.config.text_config, max_cache_len=128)
        model(**inputs, past_key_values=cache, use_cache=True)
        found.append(forward(input_ids=torch.full((3, 1), 7), past_key_values=cache, use_cache=True).logits)
    assert (found[0] - found[1]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_prefill_of_an_attached_llava_is_one_graph():
    model = attach(build_host("llava"), refusion=V1 | {"zero_init": False})
    inputs = prompts(model, "llava", [[(40, 50)], [], [(64, 20), (33, 33)]])
    assert (compiled(model)(**inputs).logits - model(**inputs).logits).abs().max() <= TOLERANCE
