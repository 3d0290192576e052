"""One contract for all back ends: the reference against loops, every other against the reference, outputs and gradients."""

import math

import pytest
import torch

from vision_remember.local_attention import BACKENDS, attend

# queries, heads, key heads, window, head width; none a power of two where that could hide a mistake
SIZES = [(1, 1, 1, 1, 1), (5, 4, 2, 9, 8), (7, 6, 3, 5, 7), (33, 3, 1, 17, 3), (4, 2, 2, 1, 4), (0, 4, 2, 9, 8)]


def make(size, dtype=torch.float32, seed=0):
    """Random inputs with awkward masks: a full window, a one-patch window, an empty one, the rest at random."""
    n, heads, kv_heads, window, width = size
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    valid = torch.rand(n, window, generator=generator) < 0.6
    valid[:1] = True
    valid[1:2] = torch.arange(window) == window - 1
    valid[2:3] = False
    tensors = (randn(n, heads, width), randn(n, window, kv_heads, width), randn(n, window, kv_heads, width))
    return *tensors, valid, randn(n, heads, window)


def by_loops(q, k, v, valid, bias):
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[2]
    for n in range(q.shape[0]):
        for h in range(q.shape[1]):
            slots = valid[n].nonzero().flatten().tolist()
            scores = [
                float(q[n, h] @ k[n, w, h // group]) / math.sqrt(q.shape[2]) + float(bias[n, h, w]) for w in slots
            ]
            total = sum(math.exp(score) for score in scores)
            for w, score in zip(slots, scores, strict=True):
                out[n, h] += math.exp(score) / total * v[n, w, h // group]
    return out


@pytest.mark.parametrize("size", SIZES)
def test_the_reference_is_what_the_loops_say(size):
    q, k, v, valid, bias = (x.detach() for x in make(size, torch.float64))
    out, weights = attend(q, k, v, valid, bias, need_weights=True)
    torch.testing.assert_close(out, by_loops(q, k, v, valid, bias), rtol=1e-10, atol=1e-10)
    total = weights.sum(-1)
    torch.testing.assert_close(total, valid.any(1)[:, None].expand_as(total).double())
    assert not weights[~valid[:, None].expand_as(weights)].any()


@pytest.mark.parametrize("backend", sorted(BACKENDS.keys() - {"reference"}))
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("size", SIZES[:-1])
def test_every_back_end_equals_the_reference_with_its_gradients(backend, with_bias, size):
    results = {}
    for name in ("reference", backend):
        q, k, v, valid, bias = make(size)
        inputs = (q, k, v, bias) if with_bias else (q, k, v)
        out, _ = attend(q, k, v, valid, bias if with_bias else None, backend=name)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        results[name] = (out, *(x.grad for x in inputs))
    for expected, got in zip(results["reference"], results[backend], strict=True):
        # float32 sums in another order: a few units in the last place of numbers around one
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_gradients_agree_with_finite_differences(backend):
    q, k, v, valid, bias = make((4, 4, 2, 3, 2), torch.float64)

    def run(*inputs):
        return attend(*inputs[:3], valid, inputs[3], backend=backend)[0]

    assert torch.autograd.gradcheck(run, (q, k, v, bias))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_query_with_an_empty_window_gets_zeros_and_harms_nobody(backend):
    q, k, v, valid, bias = make((5, 4, 2, 9, 8))
    out, _ = attend(q, k, v, valid, bias, backend=backend)
    out.sum().backward()
    assert not valid[2].any() and not out[2].any()
    for x in (q, k, v, bias):
        assert x.grad.isfinite().all() and not x.grad[2].any()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_what_lies_in_an_empty_slot_does_not_matter(backend):
    q, k, v, valid, bias = (x.detach() for x in make((7, 6, 3, 5, 7)))
    out, _ = attend(q, k, v, valid, bias, backend=backend)
    k[~valid], v[~valid] = 1e4, -1e4
    assert torch.equal(attend(q, k, v, valid, bias, backend=backend)[0], out)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_queries_comes_back(backend, dtype):
    inputs = [x.detach() if x.is_floating_point() else x for x in make((5, 4, 2, 9, 8), dtype)]
    out, _ = attend(*inputs, backend=backend)
    exact, _ = attend(*(x.double() if x.is_floating_point() else x for x in inputs), backend="reference")
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)  # bfloat16 keeps eight bits


def test_a_batch_without_queries_still_gives_every_input_a_gradient():
    q, k, v, valid, bias = make((0, 4, 2, 9, 8))
    attend(q, k, v, valid, bias)[0].sum().backward()
    assert all(x.grad is not None for x in (q, k, v, bias))


@pytest.mark.parametrize("backend", ["auto", *sorted(BACKENDS)])
def test_the_graph_is_whole_under_dynamo(backend):
    inputs = [x.detach() if x.is_floating_point() else x for x in make((5, 4, 2, 9, 8))]
    compiled = torch.compile(lambda *x: attend(*x, backend=backend)[0], backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), attend(*inputs, backend=backend)[0])


def test_weights_are_made_only_on_request():
    inputs = make((5, 4, 2, 9, 8))
    assert attend(*inputs)[1] is None
    assert attend(*inputs, need_weights=True)[1].shape == (5, 4, 9)


def test_impossible_requests_are_refused():
    q, k, v, valid, bias = make((5, 4, 2, 9, 8))
    with pytest.raises(ValueError, match="no local attention back end 'trition'"):
        attend(q, k, v, valid, bias, backend="trition")
    with pytest.raises(ValueError, match="fused back end has no attention weights"):
        attend(q, k, v, valid, bias, backend="fused", need_weights=True)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
        attend(q[:, :3], k, v, valid, bias[:, :3])
