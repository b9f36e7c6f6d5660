"""The Triton kernels equal the equation, gradients included: in Triton's interpreter, or on a GPU where there is one.

Whether kernels are interpreted is settled when triton is first imported, for a whole process. So the tests hand their
functions to a process of their own, and the other tests never notice.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def kernels():
    """Calls a function of this module where kernels can run."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        if DEVICE == "cpu":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TRITON_INTERPRET", "1")
                pool.submit(teach_bfloat16).result()
        yield lambda function, *args: pool.submit(function, *args).result()


def teach_bfloat16():
    """The interpreter keeps bfloat16 as integers of 16 bits, and multiplies those: widen them first."""
    torch.set_num_threads(1)
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, left, right, *args):
        bfloat16, float32 = interpreter.tl.bfloat16, interpreter.tl.float32
        widened = [self.create_fp_ext(x, float32) if x.dtype.scalar == bfloat16 else x for x in (left, right)]
        return multiply(self, *widened, *args)

    interpreter.InterpreterBuilder.create_dot = create_dot


def attend(*args, **kwargs):
    from modeling_music_tx.relative_attention_triton import triton_relative_attention

    return triton_relative_attention(*args, **kwargs)


@contextmanager
def tiles(*sizes):
    """Tiles of other sizes for the kernels forward, of queries and of keys: on a GPU, the clock chooses."""
    import triton

    from modeling_music_tx import relative_attention_triton as module

    tuners = module._attention_fwd_kernel, module._attention_bwd_dq_kernel, module._attention_bwd_dkv_kernel
    with pytest.MonkeyPatch.context() as patch:
        for tuner, size in zip(tuners, sizes, strict=True):
            patch.setattr(tuner, "configs", [triton.Config({"T": size})])
        yield


def inputs(batch, heads, queries, keys, dim, distances, dtype=torch.float64):
    """Random query, key, value and embeddings; in double precision they are the reference."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, heads, queries, dim),
        (batch, heads, keys, dim),
        (batch, heads, keys, dim),
        (heads, distances, dim),
    )
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in tensors]


def equation(query, key, value, embeddings, scaling, key_mask=None, window=None, kept=1.0):
    """The slow equation; its weights, read off through values that tell keys apart, are masked and sum to 1 again."""
    from modeling_music_tx.relative_attention import pairwise_distances, relative_attention

    queries, keys = query.shape[2], key.shape[2]
    apart = torch.eye(keys, dtype=key.dtype, device=DEVICE).expand(*key.shape[:2], keys, keys)
    weights = relative_attention(query, key, apart, embeddings, scaling, keys - queries)
    if window is not None:
        weights = weights * (pairwise_distances(queries, keys, keys - queries, DEVICE) < window)
    if key_mask is not None:
        weights = weights * key_mask[:, None, None]
    total = weights.sum(-1, keepdim=True)
    # A query that sees no key yields zeros.
    return (weights / total.where(total > 0, 1.0) * kept) @ value


def assert_equal(result, tensors, expected, exact, tolerance=1e-5):
    """Outputs and all four gradients agree, each measured by its own size."""
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(DEVICE)
    got = [result, *torch.autograd.grad(result, tensors, grad.to(result.dtype))]
    wanted = [expected, *torch.autograd.grad(expected, exact, grad)]
    for name, g, w in zip(("output", "query", "key", "value", "embeddings"), got, wanted, strict=True):
        # A query with one key to see, and a table with one distance, have no gradient but that of rounding.
        size = max(w.norm(), w.numel() ** 0.5)
        assert (g.double() - w).norm() <= tolerance * size, f"{name}: {(g.double() - w).norm() / size}"


# Tiles are 32 by 32 in the interpreter: several of them, and odd last ones.
CASES = {
    "B1-H1-Q1-K1-D16-M4": ((1, 1, 1, 1, 16, 4), None, None),
    "B2-H2-Q39-K39-D16-M50": ((2, 2, 39, 39, 16, 50), None, None),
    "B1-H2-Q53-K53-D32-M9-clipped": ((1, 2, 53, 53, 32, 9), None, None),
    "B2-H1-Q21-K45-D24-M33-after-a-cache": ((2, 1, 21, 45, 24, 33), None, None),
    "B1-H1-Q19-K67-D5-M1-one-distance": ((1, 1, 19, 67, 5, 1), None, None),
    "B1-H1-Q70-K70-D64-M20": ((1, 1, 70, 70, 64, 20), None, None),
    "B1-H1-Q40-K40-D128-M30": ((1, 1, 40, 40, 128, 30), None, None),
    "window-of-1": ((1, 1, 37, 37, 16, 20), 1, None),
    "window-of-7": ((1, 1, 75, 75, 16, 20), 7, None),
    "window-beyond-the-table-after-a-cache": ((1, 1, 70, 140, 16, 9), 60, None),
    "window-beyond-the-sequence": ((1, 1, 37, 37, 16, 20), 200, None),
    "padding-and-queries-that-see-nothing": ((2, 1, 50, 50, 16, 20), None, [range(23), range(30, 40)]),
    "padding-after-a-cache-and-window": ((2, 1, 37, 90, 16, 9), 20, [range(70), range(50, 60)]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_kernels_equal_the_equation_in_output_and_all_four_gradients(kernels, case):
    kernels(compare_with_equation, *case)


def compare_with_equation(shape, window, hidden):
    key_mask = None
    if hidden is not None:
        key_mask = torch.ones(shape[0], shape[3], dtype=torch.bool, device=DEVICE)
        for batch, keys in enumerate(hidden):
            key_mask[batch, keys] = False
    tensors, exact = inputs(*shape, dtype=torch.float32), inputs(*shape)
    result = attend(*tensors, 0.3, key_mask, window)
    assert_equal(result, tensors, equation(*exact, 0.3, key_mask, window), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_near_the_equation(kernels, dtype):
    kernels(compare_half, dtype)


def compare_half(dtype):
    shape = (1, 2, 40, 40, 16, 32)
    exact = inputs(*shape)
    *low, embeddings = inputs(*shape, dtype=torch.float32)
    # As under autocast, the embeddings come in single precision, and so does their gradient.
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in low]
    result = attend(*low, embeddings, 0.25)
    assert result.dtype == dtype
    assert_equal(result, [*low, embeddings], equation(*exact, 0.25), exact, tolerance=2e-2)


def test_dropout_equals_the_equation_under_the_same_mask_whatever_the_tiles(kernels):
    kernels(compare_dropout)


def compare_dropout():
    shape, dropout = (2, 2, 36, 40, 40, 30), 0.3
    tensors, exact = inputs(*shape, dtype=torch.float32), inputs(*shape)
    query, key, _, embeddings = tensors
    torch.manual_seed(7)
    with torch.no_grad():
        kept = attend(query, key, torch.eye(40, device=DEVICE).expand_as(key), embeddings, 0.1, dropout=dropout) > 0
    share = kept[:, :, torch.ones(36, 40, dtype=torch.bool).tril(4)].float().mean((0, 2))
    assert (share - 0.7).abs().max() < 0.04
    assert (kept[0] != kept[1]).any()
    assert (kept[:, 0] != kept[:, 1]).any()

    expected = equation(*exact, 0.1, kept=kept / (1 - dropout))
    torch.manual_seed(7)
    with tiles(64, 32, 64):
        assert_equal(attend(*tensors, 0.1, dropout=dropout), tensors, expected, exact)


def test_any_layout_in_memory_will_do(kernels):
    kernels(compare_layouts)


def compare_layouts():
    *tensors, embeddings = inputs(2, 2, 20, 20, 16, 12, dtype=torch.float32)
    tensors = torch.stack(tensors).detach()
    in_one_projection = tensors.permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    columns = tensors.mT.contiguous().mT
    results = []
    for laid in (tensors, in_one_projection, columns):
        laid.requires_grad_()
        result = attend(*laid, embeddings, 0.3)
        assert result.transpose(1, 2).is_contiguous()
        # The gradient of a sum is one number in memory.
        results.append((result, *torch.autograd.grad(result.sum(), (laid, embeddings))))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_compiled_code_holds_the_kernels_without_a_break(kernels):
    kernels(compile_in_one_graph)


def compile_in_one_graph():
    tensors = inputs(1, 2, 20, 20, 16, 20, dtype=torch.float32)

    def attend_with_dropout(*tensors):
        return attend(*tensors, 0.3, dropout=0.2) * 2

    results = []
    for function in (attend_with_dropout, torch.compile(attend_with_dropout, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        result = function(*tensors)
        results.append((result, *torch.autograd.grad(result.square().sum(), tensors)))
    torch.testing.assert_close(*results)


LAYOUTS = {
    "all-keys": {},
    "mask-of-keys": {"attention_mask": "keys"},
    "window": {"sliding_window": 5},
    "after-a-cache": {"shape": (2, 2, 9, 20, 16, 12)},
    "one-query": {"shape": (2, 2, 1, 20, 16, 12), "by_kernels": False},
    "mask-of-pairs": {"attention_mask": "pairs", "by_kernels": False},
    "offset-in-a-tensor": {"offset": "tensor", "by_kernels": False},
    "no-relative-term": {"relative": False, "by_kernels": False},
    "head-dimension-of-160": {"shape": (2, 2, 20, 20, 160, 12), "by_kernels": False},
    "double-precision": {"dtype": torch.float64, "by_kernels": False},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_attention_of_a_model_goes_by_kernels_where_it_can_and_equals_the_blocks_everywhere(kernels, layout):
    kernels(compare_interface, layout)


def compare_interface(layout):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from modeling_music_tx import relative_attention_triton as module
    from modeling_music_tx.relative_attention import BLOCKED

    shape = layout.get("shape", (2, 2, 20, 20, 16, 12))
    queries, keys = shape[2:4]
    *tensors, embeddings = (tensor.detach() for tensor in inputs(*shape, dtype=layout.get("dtype", torch.float32)))
    pairs = torch.ones(2, 1, queries, keys, dtype=torch.bool, device=DEVICE).tril(keys - queries)
    masks = {"keys": torch.arange(keys, device=DEVICE) >= torch.tensor([[0], [3]], device=DEVICE), "pairs": pairs}
    offset = torch.tensor(keys - queries, device=DEVICE) if layout.get("offset") == "tensor" else keys - queries
    mask = masks.get(layout.get("attention_mask"))
    # A mask of keys leaves the first queries nothing to see: padding, which is not compared.
    first = 3 if layout.get("attention_mask") == "keys" else 0

    calls = []
    kernels = module.triton_relative_attention

    def watched(*args):
        calls.append(args)
        return kernels(*args)

    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "triton_relative_attention", watched)
        for name in (module.TRITON, BLOCKED):
            output, weights = ALL_ATTENTION_FUNCTIONS[name](
                torch.nn.Module(),
                *tensors,
                mask,
                scaling=0.3,
                relative_embeddings=embeddings if layout.get("relative", True) else None,
                offset=offset,
                sliding_window=layout.get("sliding_window"),
            )
            assert weights is None
            results.append(output[:, first:])
    assert len(calls) == layout.get("by_kernels", True)
    torch.testing.assert_close(*results)


def test_a_second_copy_of_the_file_leaves_the_first_at_work(kernels):
    kernels(copy)


def copy():
    """A model from the Hub brings a copy along, and may meet the package in one process."""
    import importlib.util

    from modeling_music_tx import relative_attention_triton as first

    spec = importlib.util.spec_from_file_location("modeling_music_tx.copied", first.__file__)
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    tensors = inputs(1, 1, 5, 5, 16, 4, dtype=torch.float32)
    results = []
    for module in (first, second, first):
        result = module.triton_relative_attention(*tensors, 0.3)
        results.append((result, *torch.autograd.grad(result.sum(), tensors)))
    assert len(results) == 3
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


@pytest.mark.parametrize(
    ("dim", "dtype", "words"),
    [(16, torch.float64, "not in torch.float64"), (160, torch.float16, "up to 128, not 160")],
    ids=["float64", "D160"],
)
def test_what_the_kernels_cannot_do_they_say(kernels, dim, dtype, words):
    with pytest.raises(ValueError, match=words):
        kernels(attend, *[x.detach() for x in inputs(1, 1, 4, 4, dim, 4, dtype=dtype)], 0.3)
