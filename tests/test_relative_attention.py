"""Every faster way to relative attention equals the equation, gradients included."""

import pytest
import torch

from modeling_music_tx import relative_attention as attention


def inputs(batch, heads, queries, keys, dim, distances, seed=0):
    """Random query, key, value and embeddings in double precision, so that only mistakes differ."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, heads, queries, dim),
        (batch, heads, keys, dim),
        (batch, heads, keys, dim),
        (heads, distances, dim),
    )
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def by_double_loop(query, key, value, embeddings, scaling, key_mask=None, window=None):
    """The definition, one pair of tokens at a time."""
    batch, heads, queries, _ = query.shape
    offset = key.shape[2] - queries
    output = torch.zeros_like(query)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                seen, logits = [], []
                for j in range(offset + i + 1):
                    distance = offset + i - j
                    if (window is not None and distance >= window) or (key_mask is not None and not key_mask[b, j]):
                        continue
                    row = embeddings.shape[1] - 1 - min(distance, embeddings.shape[1] - 1)
                    logits.append((query[b, h, i] @ key[b, h, j] + query[b, h, i] @ embeddings[h, row]) * scaling)
                    seen.append(j)
                if seen:
                    output[b, h, i] = torch.stack(logits).softmax(0) @ value[b, h, seen]
    return output


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, and an odd last one, already at lengths that a double loop can walk."""
    monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 32)


CASES = {
    "B1-H1-Q1-K1-M4": (1, 1, 1, 1, 4),
    "B2-H3-Q45-K45-M64": (2, 3, 45, 45, 64),
    "B1-H2-Q70-K70-M16-clipped": (1, 2, 70, 70, 16),
    "B2-H2-Q33-K50-M20-after-a-cache": (2, 2, 33, 50, 20),
    "B1-H2-Q5-K40-M1-one-distance": (1, 2, 5, 40, 1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_equation_is_the_double_loop(case):
    batch, heads, queries, keys, distances = case
    query, key, value, embeddings = inputs(batch, heads, queries, keys, 4, distances)
    result = attention.relative_attention(query, key, value, embeddings, 0.5, offset=keys - queries)
    torch.testing.assert_close(result, by_double_loop(query, key, value, embeddings, 0.5))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_blocks_equal_the_equation_in_output_and_all_four_gradients(case):
    batch, heads, queries, keys, distances = case
    tensors = inputs(batch, heads, queries, keys, 8, distances)
    expected = attention.relative_attention(*tensors, 0.3, offset=keys - queries)
    result = attention.blocked_relative_attention(*tensors, 0.3)
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, tensors, grad), torch.autograd.grad(expected, tensors, grad)
    )


@pytest.mark.parametrize("window", [None, 1, 7, 34, 100])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("queries", [36, 20])
def test_blocks_with_window_and_padding_equal_the_double_loop_with_gradients(window, padded, queries):
    tensors = inputs(2, 1, queries, 36, 4, 16)
    key_mask = torch.ones(2, 36, dtype=torch.bool)
    if padded:
        key_mask[0, :9] = False
    result = attention.blocked_relative_attention(*tensors, 0.5, key_mask, window)
    expected = by_double_loop(*tensors, 0.5, key_mask, window)
    # A query with no key to see is padding itself: it must be finite, and is not looked at.
    seeing = expected.abs().sum(-1, keepdim=True) > 0
    assert result.isfinite().all()
    grad = torch.randn_like(expected) * seeing
    torch.testing.assert_close(result * seeing, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, tensors, grad), torch.autograd.grad(expected, tensors, grad)
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kind", ["number", "tensor", "distances"])
def test_the_bias_of_visible_pairs_is_query_times_embedding(case, kind):
    batch, heads, queries, keys, distances = case
    query, _, _, embeddings = inputs(batch, heads, queries, keys, 4, distances)
    offset = keys - queries
    pairs = attention.pairwise_distances(queries, keys, offset, "cpu")
    given = {
        "number": {"offset": offset},
        "tensor": {"offset": torch.tensor(offset)},
        "distances": {"distances": pairs[None]},
    }
    bias = attention.relative_logits(query, embeddings, keys, **given[kind])
    rows = distances - 1 - pairs.clamp(0, distances - 1)
    expected = torch.einsum("bhqd,hqkd->bhqk", query, embeddings[:, rows])
    visible = pairs >= 0
    torch.testing.assert_close(bias[..., visible], expected[..., visible])


def test_keys_beyond_the_last_query_leave_the_bias_of_the_others_alone():
    query, _, _, embeddings = inputs(1, 2, 3, 10, 4, 8)
    bias = attention.relative_logits(query, embeddings, 16, 7)
    assert bias.shape == (1, 2, 3, 16)
    torch.testing.assert_close(bias[..., :10], attention.relative_logits(query, embeddings, 10, 7))


def test_dropout_is_the_same_in_the_backward_pass_and_keeps_the_mean():
    query, key, value, embeddings = inputs(1, 1, 64, 64, 4, 64)
    torch.manual_seed(3)
    result = attention.blocked_relative_attention(query, key, value, embeddings, 0.5, dropout=0.5)
    # The output is linear in the values: with one mask in both passes, value · gradient is the output itself.
    (grad,) = torch.autograd.grad(result.sum(), value)
    torch.testing.assert_close((grad * value).sum(), result.sum())

    ones = torch.ones_like(value)
    mean = torch.stack(
        [attention.blocked_relative_attention(query, key, ones, embeddings, 0.5, dropout=0.5) for _ in range(200)]
    ).mean()
    assert abs(mean - 1) < 0.05


def test_dropout_gradients_equal_finite_differences():
    tensors = inputs(1, 2, 6, 6, 3, 4)

    def attend(*tensors):
        torch.manual_seed(5)
        return attention.blocked_relative_attention(*tensors, 0.7, dropout=0.3)

    assert torch.autograd.gradcheck(attend, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_the_equation(dtype):
    tensors = inputs(2, 2, 80, 80, 16, 32)
    expected = attention.relative_attention(*tensors, 0.25)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, tensors, grad)
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    result = attention.blocked_relative_attention(*low, 0.25)
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    pairs = [(result, expected), *zip(torch.autograd.grad(result, low, grad.to(dtype)), grads, strict=True)]
    for got, wanted in pairs:
        assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


def test_autocast_computes_in_the_dtype_of_the_query():
    query, key, value, embeddings = (tensor.float() for tensor in inputs(1, 2, 20, 20, 8, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = [tensor.bfloat16() for tensor in (query, key, value)]
        result = attention.blocked_relative_attention(*low, embeddings, 0.3)
    assert result.dtype == torch.bfloat16
    expected = attention.relative_attention(query, key, value, embeddings, 0.3)
    assert (result.float() - expected).norm() <= 3e-2 * expected.norm()


def test_no_tensor_of_queries_times_keys_is_ever_made():
    length = 3000
    query, key, value, embeddings = (t.detach().float().requires_grad_() for t in inputs(1, 1, length, length, 8, 64))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        attention.blocked_relative_attention(query, key, value, embeddings, 0.3).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest > query.nbytes / 2  # the blocks themselves are seen
    assert largest < length * length * query.element_size() / 8


def test_the_paper_s_order_puts_distance_zero_last():
    """With one-hot rows, the bias itself tells which row each key read."""
    distances = 6
    embeddings = torch.eye(distances)[None]
    query = torch.arange(distances, dtype=torch.float32).view(1, 1, 1, distances)
    rows = attention.relative_logits(query, embeddings, 9, 8)[0, 0, 0].tolist()
    assert rows == [0, 0, 0, 0, 1, 2, 3, 4, 5]
