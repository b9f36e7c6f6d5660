"""Relative attention on a GPU, in Triton: exact outputs and gradients, and no Q x K or Q x M tensor in memory.

Shape letters are those of `relative_attention.py`, which holds the equation: B batch, H heads, Q queries, K keys,
D head dimension, M distances in the table. T is the side of a tile, T queries by T keys, that one step computes.

A tile whose diagonal has the distance `near` covers the distances `near - T + 1 ... near + T - 1`. Its relative
logits come from two products of its queries with T rows of the table:

    older[i, c] = query i · embedding of distance near + c        for the keys up to the diagonal, j <= i
    newer[i, c] = query i · embedding of distance near - T + c    for the keys after it, j > i

Query i and key j need column `c = (i - j) mod T` of one of them, and the column decides which: `older` where c <= i.
So `merge` makes one T x T tile of the two and `unskew` moves column c of row i to key j. The function is its own
inverse: it also moves the gradient of the scores from keys back to distances.

One tile further along the keys, `near` is smaller by T, and the newer product becomes the older. A program that
iterates over the keys of its queries computes one new product per tile: the relative term costs one more `Q Kᵀ` and an
unskew. Beyond the table, where all distances share row 0, it costs one number per query.

Source: Huang et al. 2018 (arXiv 1809.04281), section 3.4, for the skew; Dao et al. 2022 (arXiv 2205.14135) for the
online softmax and the recomputation in the backward pass.
"""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from .relative_attention import blocked_attention_forward, blocked_mask, operator_namespace

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The Triton kernels need the package triton; PyTorch for CUDA installs it.") from error

# Settled for good when the kernels below are made. The interpreter runs them with NumPy, on any machine, slowly.
INTERPRETED = triton.knobs.runtime.interpret

LN_2 = tl.constexpr(math.log(2))


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a tile
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _plane(tensor, strides, batch, head):
    """Where one batch row and head of a tensor [B, H, length, D] begin; its rows are `strides[2]` apart."""
    return tensor + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]


@triton.jit
def _new_strides(length, H, D: tl.constexpr):
    """Strides of what `_new` makes."""
    return length * H * D, D, H * D


@triton.jit
def _load(pointer, rows, length, stride, D: tl.constexpr, D_PADDED: tl.constexpr):
    """The given rows, [T, D_PADDED]; zeros for rows from `length` on and for columns from D on."""
    columns = tl.arange(0, D_PADDED)
    inside = (rows < length)[:, None] & (columns < D)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, tile, rows, length, stride, D: tl.constexpr, D_PADDED: tl.constexpr):
    """Writes what `_load` would read, in the dtype of the tensor."""
    columns = tl.arange(0, D_PADDED)
    inside = (rows < length)[:, None] & (columns < D)[None, :]
    tl.store(pointer + rows[:, None] * stride + columns[None, :], tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _rows(nearest, M, T: tl.constexpr):
    """Rows of the table for the distances `nearest ... nearest + T - 1`, [T]; M and more, no rows, for the future."""
    return tl.maximum(M - 1 - nearest - tl.arange(0, T), 0)


@triton.jit
def _dot(left, right, total=None):
    """A matrix product, added to `total` in single precision; single precision itself is worth three of TF32."""
    return tl.dot(left, right, total, input_precision="tf32x3")


@triton.jit
def _merge(older, newer, T: tl.constexpr):
    """The columns 0 ... i of row i from `older`, those after it from `newer`, [T, T]."""
    indices = tl.arange(0, T)
    return tl.where(indices[None, :] <= indices[:, None], older, newer)


@triton.jit
def _unskew(tile, T: tl.constexpr):
    """Brings column `(i - j) mod T` of row i to column j: from distances to keys, and from keys to distances; [T, T].

    Flattened, the gather reads shared memory, element by element and from where the accumulators of the products are
    to where they go. The 8 x 8 blocks, laid one after the other, put the 8 rows and 8 columns that a warp holds at a
    time into different banks, before and after. A gather of the tile as it is (`axis=1`) would go by warp
    shuffles, in a layout of its own: twice the shuffles and a trip through shared memory there and back. Compiled for
    Hopper, a step of the forward pass is 520 to 740 instructions this way, 750 to 830 that way, 350 without.
    """
    rows = tl.arange(0, T)[:, None]
    columns = (rows - tl.arange(0, T)[None, :]) & (T - 1)
    places = (rows // 8 * (T // 8) + columns // 8) * 64 + rows % 8 * 8 + columns % 8
    blocks = tl.permute(tl.reshape(tile, (T // 8, 8, T // 8, 8)), (0, 2, 1, 3))
    return tl.reshape(tl.gather(tl.reshape(blocks, (T * T,)), tl.reshape(places, (T * T,)), 0), (T, T))


@triton.jit
def _hide(logits, distances, keys, key_mask, K, window, CAUSAL: tl.constexpr):
    """Set masked logits to minus infinity; `CAUSAL` if the tile may hold keys of the future."""
    if CAUSAL:
        logits = tl.where(distances >= 0, logits, float("-inf"))
    if window is not None:
        logits = tl.where(distances < window, logits, float("-inf"))
    if key_mask is not None:
        logits = tl.where(tl.load(key_mask + keys, mask=keys < K, other=0), logits, float("-inf"))
    return logits


@triton.jit
def _kept(seed, queries, first_key, K, DROPOUT: tl.constexpr, T: tl.constexpr):
    """Weights of a tile that dropout keeps, [T, T]; they depend on seed, query and key, not on the tiling."""
    # One count draws four numbers, for four keys 8 apart in a block of 32. Seven rounds are the fewest with which
    # Philox passes all of its authors' tests (Salmon et al. 2011); ten, the default, cost a third of a step.
    counts = queries[:, None] * tl.cdiv(K, 4) + (first_key // 4 + tl.arange(0, T // 4))[None, :]
    first, second, third, fourth = tl.randint4x(seed, counts, n_rounds=7)
    drawn = tl.join(tl.join(first, third), tl.join(second, fourth))  # [T, T / 4, 2, 2]
    drawn = tl.permute(tl.reshape(drawn, (T, T // 32, 8, 4)), (0, 1, 3, 2))
    return tl.reshape(drawn, (T, T)).to(tl.uint32, bitcast=True) >= int(DROPOUT * 2**32)


@triton.jit
def _key_stops(reach, M, window, T: tl.constexpr):
    """First keys of the tiles that T queries iterate over: all beyond the table, within it, on the diagonal, the end.

    `reach` is the distance from the first of the queries to key 0. The end lies past the diagonal of the last query
    even where no such keys exist, so that what was newer becomes older once more.
    """
    start = 0 if window is None else tl.maximum(reach - window + 1, 0) // T * T
    near = tl.maximum(tl.maximum(reach - M + 2, 0) // T * T, start)
    diagonal = tl.maximum((reach + 1) // T * T, near)
    return start, near, diagonal, tl.cdiv(reach + T, T) * T


@triton.jit
def _query_stops(nearest, Q, M, window, T: tl.constexpr):
    """First queries of the tiles that attend to T keys: on the diagonal, within the table, all beyond it, the end.

    `nearest` is the query, possibly a negative one, at distance 0 from the first of the keys.
    """
    stop = Q if window is None else tl.minimum(Q, nearest + T - 1 + window)
    near = tl.cdiv(tl.maximum(nearest + T - 1, 0), T) * T
    far = tl.cdiv(tl.maximum(nearest + M + T - 2, 0), T) * T
    return tl.maximum(nearest, 0) // T * T, tl.minimum(near, stop), tl.minimum(far, stop), stop


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


# Arguments that differ between calls and need no recompilation: alignment follows from D and from the strides.
LENGTHS = ["window", "Q", "K", "M", "magnitude"]


def _tuned(*choices, **settings):
    """Autotune (T, num_warps, num_stages) for each dtype, head dimension and magnitude.

    The magnitude is the number of bits of K. No kernel reads it: it separates the choices of short and long prompts.

    A tile of 64 keeps a tensor core instruction of Hopper busy with 4 warps, and its scores and sums in their
    registers. Loads run 1, 2 or 3 tiles ahead, as shared memory allows: it decides between one and two programs a
    multiprocessor. Tiles of 32 are for rows too wide for that, and for the interpreter, which has no clock.
    """
    configs = [triton.Config({"T": tile}, num_warps=warps, num_stages=stages) for tile, warps, stages in choices]
    if INTERPRETED:
        configs = configs[:1]
    return triton.autotune(
        configs, key=["D", "magnitude"], prune_configs_by={"early_config_prune": _largest}, **settings
    )


def _largest(configs, tensors, D_PADDED, **kwargs):
    """Return the configurations with large tiles among those that fit into registers."""
    width = tensors["query"].element_size()
    # Bytes of a row. A product in single precision is three, and holds its operands in registers as well.
    row = D_PADDED * width * (width // 2)
    fitting = [config for config in configs if config.kwargs["T"] * row <= 16384 or config.kwargs["T"] == 32]
    largest = max(config.kwargs["T"] for config in fitting)
    return [config for config in fitting if config.kwargs["T"] >= min(largest, 64)]


@_tuned((32, 4, 2), (32, 8, 1), (64, 4, 1), (64, 4, 2), (64, 4, 3), (128, 8, 2))
@triton.jit(do_not_specialize=LENGTHS)
def _attention_fwd_kernel(
    query, key, value, table, key_mask, seed, query_strides, key_strides, value_strides, output, lse,
    scale, window, Q, K, M, H, magnitude,
    D: tl.constexpr, D_PADDED: tl.constexpr, DROPOUT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Output of T queries, and the logarithms to base 2 of their softmax's denominators; programs B · H · tiles."""
    program, tiles = tl.program_id(0), tl.cdiv(Q, T)
    row = program // tiles
    batch, head = row // H, row % H
    # The last queries have the most keys: they start first.
    first_query = (tiles - 1 - program % tiles) * T
    indices = tl.arange(0, T)
    queries = first_query + indices
    pairs = indices[:, None] - indices[None, :]
    reach = K - Q + first_query
    stops = _key_stops(reach, M, window, T)

    key, value = _plane(key, key_strides, batch, head), _plane(value, value_strides, batch, head)
    table += head * M * D
    if key_mask is not None:
        key_mask += batch.to(tl.int64) * K
    if seed is not None:
        seed = tl.load(seed) + row
    q = _load(_plane(query, query_strides, batch, head), queries, Q, query_strides[2], D, D_PADDED)  # [T, D_PADDED]
    far = tl.sum(q.to(tl.float32) * _load(table, tl.zeros((1,), tl.int32), M, D, D, D_PADDED).to(tl.float32), 1)
    older = _dot(q, _load(table, _rows(reach - stops[1], M, T), M, D, D, D_PADDED).T)  # [T, T]

    # A finite start: if all keys are masked, this is the largest logit and every weight is zero.
    largest = tl.full((T,), -1e30, tl.float32)
    total = tl.zeros((T,), tl.float32)
    acc = tl.zeros((T, D_PADDED), tl.float32)  # [T, D_PADDED]
    for part in tl.static_range(3):  # far, near, diagonal
        for first_key in range(stops[part], stops[part + 1], T):
            near = reach - first_key
            keys = first_key + indices
            logits = _dot(q, _load(key, keys, K, key_strides[2], D, D_PADDED).T)  # [T, T]
            if part == 0:
                logits += far[:, None]
            else:
                newer = _dot(q, _load(table, _rows(near - T, M, T), M, D, D, D_PADDED).T)  # [T, T]
                logits += _unskew(_merge(older, newer, T), T)
                older = newer
            logits = _hide(logits, near + pairs, keys[None, :], key_mask, K, window, part == 2)

            larger = tl.maximum(largest, tl.max(logits, 1) * scale)
            weights = tl.exp2(logits * scale - larger[:, None])  # [T, T]
            shrunk = tl.exp2(largest - larger)
            largest = larger
            total = total * shrunk + tl.sum(weights, 1)
            if seed is not None:
                weights = tl.where(_kept(seed, queries, first_key, K, DROPOUT, T), weights, 0.0)
            v = _load(value, keys, K, value_strides[2], D, D_PADDED)  # [T, D_PADDED]
            acc = _dot(weights.to(v.dtype), v, acc * shrunk[:, None])  # [T, D_PADDED]

    # If all keys are masked, the output is zero, and an infinite sum makes the gradients zero.
    sees = total > 0
    total = tl.where(sees, total, 1.0)
    acc /= total[:, None] * (1 - DROPOUT)
    strides = _new_strides(Q, H, D)
    _store(_plane(output, strides, batch, head), acc, queries, Q, strides[2], D, D_PADDED)
    lse_tile = tl.where(sees, largest + tl.log2(total), float("inf"))
    tl.store(lse + row.to(tl.int64) * Q + queries, lse_tile, mask=queries < Q)


# The gradient of the table is a sum over all queries at one distance, which no walk along keys or queries keeps to
# itself. Here every tile adds T rows to it in memory: as many additions as FlashAttention-2 makes for the gradient of
# the queries, in vectors of four, spread over the whole table. A program that owned a range of distances would need
# none and give the same bits in every run. But it would compute the scores and their gradient a third time, both of
# two tiles to use half of each: 6 products and 2 unskews for a tile, instead of 1 product and the additions; by the
# count of instructions half of the whole backward pass more. The other three gradients have the same bits every time.
@_tuned((32, 4, 2), (32, 8, 1), (64, 4, 1), (64, 4, 2), (64, 8, 1), reset_to_zero=["grad_table"])
@triton.jit(do_not_specialize=LENGTHS)
def _attention_bwd_dq_kernel(
    query, key, value, table, key_mask, seed, query_strides, key_strides, value_strides,
    grad_output, grad_strides, output, lse, grad_query, grad_table, deltas, far_sums,
    scale, window, Q, K, M, H, magnitude,
    D: tl.constexpr, D_PADDED: tl.constexpr, DROPOUT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradients of T queries and, added up, of the table, both still to be scaled; and two numbers per query.

    The numbers are for `_attention_bwd_dkv_kernel`: `deltas`, the product of an output with its gradient, and
    `far_sums`, the `lse` less the relative term beyond the table.
    """
    program, tiles = tl.program_id(0), tl.cdiv(Q, T)
    row = program // tiles
    batch, head = row // H, row % H
    first_query = (tiles - 1 - program % tiles) * T
    indices = tl.arange(0, T)
    columns = tl.arange(0, D_PADDED)
    queries = first_query + indices
    pairs = indices[:, None] - indices[None, :]
    reach = K - Q + first_query
    stops = _key_stops(reach, M, window, T)

    key, value = _plane(key, key_strides, batch, head), _plane(value, value_strides, batch, head)
    table += head * M * D
    grad_table += head * M * D
    if key_mask is not None:
        key_mask += batch.to(tl.int64) * K
    if seed is not None:
        seed = tl.load(seed) + row
    q = _load(_plane(query, query_strides, batch, head), queries, Q, query_strides[2], D, D_PADDED)  # [T, D_PADDED]
    grad = _load(_plane(grad_output, grad_strides, batch, head), queries, Q, grad_strides[2], D, D_PADDED)
    strides = _new_strides(Q, H, D)
    out = _load(_plane(output, strides, batch, head), queries, Q, strides[2], D, D_PADDED)  # [T, D_PADDED]
    farthest = _load(table, tl.zeros((1,), tl.int32), M, D, D, D_PADDED).to(tl.float32)
    far = tl.sum(q.to(tl.float32) * farthest, 1)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    numbers = row.to(tl.int64) * Q + queries
    # Queries after the last have an infinite sum, hence no weights and no gradients.
    lse_tile = tl.load(lse + numbers, mask=queries < Q, other=float("inf"))
    tl.store(deltas + numbers, delta, mask=queries < Q)
    tl.store(far_sums + numbers, lse_tile - far * scale, mask=queries < Q)
    older = _dot(q, _load(table, _rows(reach - stops[1], M, T), M, D, D, D_PADDED).T)  # [T, T]

    # Zeros in the layout of a product's result. The compiler leaves the unskewed gradients in it then, and need not
    # carry them through shared memory into another: a fifth of the loop.
    grad_newer = older * 0
    grad_far = tl.zeros((T,), tl.float32)
    grad_q = tl.zeros((T, D_PADDED), tl.float32)  # [T, D_PADDED]
    for part in tl.static_range(3):  # far, near, diagonal
        for first_key in range(stops[part], stops[part + 1], T):
            near = reach - first_key
            keys = first_key + indices
            k = _load(key, keys, K, key_strides[2], D, D_PADDED)  # [T, D_PADDED]
            logits = _dot(q, k.T)  # [T, T]
            if part == 0:
                logits += far[:, None]
            else:
                newer = _dot(q, _load(table, _rows(near - T, M, T), M, D, D, D_PADDED).T)  # [T, T]
                logits += _unskew(_merge(older, newer, T), T)
                older = newer
            logits = _hide(logits, near + pairs, keys[None, :], key_mask, K, window, part == 2)

            weights = tl.exp2(logits * scale - lse_tile[:, None])  # [T, T]
            grad_weights = _dot(grad, _load(value, keys, K, value_strides[2], D, D_PADDED).T)  # [T, T]
            if seed is not None:
                kept = _kept(seed, queries, first_key, K, DROPOUT, T)
                grad_weights = tl.where(kept, grad_weights / (1 - DROPOUT), 0.0)
            grad_logits = weights * (grad_weights - delta[:, None])  # [T, T]
            grad_q = _dot(grad_logits.to(q.dtype), k, grad_q)  # [T, D_PADDED]
            if part == 0:
                grad_far += tl.sum(grad_logits, 1)
            else:
                # What the tile before this one left for the same distances, and this one's share, in one product.
                unskewed = _unskew(grad_logits, T)
                grad_older = _merge(unskewed, grad_newer, T).to(q.dtype)
                grad_newer = unskewed
                rows = _rows(near, M, T)
                grad_q = _dot(grad_older, _load(table, rows, M, D, D, D_PADDED), grad_q)  # [T, D_PADDED]
                places = grad_table + rows[:, None] * D + columns[None, :]
                inside = (rows < M)[:, None] & (columns < D)[None, :]
                tl.atomic_add(places, _dot(grad_older.T, q), mask=inside, sem="relaxed")

    if stops[0] < stops[1]:
        grad_farthest = tl.sum(grad_far[:, None] * q.to(tl.float32), 0)
        tl.atomic_add(grad_table + columns, grad_farthest, mask=columns < D, sem="relaxed")
    grad_q += grad_far[:, None] * farthest
    # The scale is to base 2, for `exp2`; the gradient is to base e.
    grad_q *= scale * LN_2
    _store(_plane(grad_query, strides, batch, head), grad_q, queries, Q, strides[2], D, D_PADDED)


@_tuned((32, 4, 2), (32, 8, 1), (64, 4, 1), (64, 4, 2), (64, 8, 1))
@triton.jit(do_not_specialize=LENGTHS)
def _attention_bwd_dkv_kernel(
    query, key, value, table, key_mask, seed, query_strides, key_strides, value_strides,
    grad_output, grad_strides, lse, grad_key, grad_value, deltas, far_sums,
    scale, window, Q, K, M, H, magnitude,
    D: tl.constexpr, D_PADDED: tl.constexpr, DROPOUT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradients of T keys and values. Tiles stand on their side here, [keys, queries], ready for the two products."""
    program, tiles = tl.program_id(0), tl.cdiv(K, T)
    row = program // tiles
    batch, head = row // H, row % H
    first_key = program % tiles * T
    indices = tl.arange(0, T)
    keys = first_key + indices
    pairs = indices[None, :] - indices[:, None]
    nearest = first_key - (K - Q)
    stops = _query_stops(nearest, Q, M, window, T)

    query, grad_output = _plane(query, query_strides, batch, head), _plane(grad_output, grad_strides, batch, head)
    table += head * M * D
    if key_mask is not None:
        key_mask += batch.to(tl.int64) * K
    if seed is not None:
        seed = tl.load(seed) + row
    k = _load(_plane(key, key_strides, batch, head), keys, K, key_strides[2], D, D_PADDED)  # [T, D_PADDED]
    v = _load(_plane(value, value_strides, batch, head), keys, K, value_strides[2], D, D_PADDED)  # [T, D_PADDED]

    grad_k = tl.zeros((T, D_PADDED), tl.float32)  # [T, D_PADDED]
    grad_v = tl.zeros((T, D_PADDED), tl.float32)  # [T, D_PADDED]
    for part in tl.static_range(3):  # diagonal, near, far
        for first_query in range(stops[part], stops[part + 1], T):
            near = first_query - nearest
            queries = first_query + indices
            numbers = row.to(tl.int64) * Q + queries
            q = _load(query, queries, Q, query_strides[2], D, D_PADDED)  # [T, D_PADDED]
            logits = _dot(k, q.T)  # [T, T]
            if part == 2:
                lse_tile = tl.load(far_sums + numbers, mask=queries < Q, other=float("inf"))
            else:
                lse_tile = tl.load(lse + numbers, mask=queries < Q, other=float("inf"))
                older = _dot(q, _load(table, _rows(near, M, T), M, D, D, D_PADDED).T)  # [T, T]
                newer = _dot(q, _load(table, _rows(near - T, M, T), M, D, D, D_PADDED).T)  # [T, T]
                logits += _unskew(_merge(older, newer, T), T).T
            logits = _hide(logits, near + pairs, keys[:, None], key_mask, K, window, part == 0)

            weights = tl.exp2(logits * scale - lse_tile[None, :])  # [T, T]
            grad = _load(grad_output, queries, Q, grad_strides[2], D, D_PADDED)  # [T, D_PADDED]
            grad_weights = _dot(v, grad.T)  # [T, T]
            kept_weights = weights
            if seed is not None:
                kept = _kept(seed, queries, first_key, K, DROPOUT, T).T
                kept_weights = tl.where(kept, weights, 0.0)
                grad_weights = tl.where(kept, grad_weights / (1 - DROPOUT), 0.0)
            grad_v = _dot(kept_weights.to(grad.dtype), grad, grad_v)  # [T, D_PADDED]
            delta = tl.load(deltas + numbers, mask=queries < Q, other=0.0)
            grad_logits = weights * (grad_weights - delta[None, :])  # [T, T]
            grad_k = _dot(grad_logits.to(q.dtype), q, grad_k)  # [T, D_PADDED]

    grad_k *= scale * LN_2
    grad_v /= 1 - DROPOUT
    strides = _new_strides(K, H, D)
    _store(_plane(grad_key, strides, batch, head), grad_k, keys, K, strides[2], D, D_PADDED)
    _store(_plane(grad_value, strides, batch, head), grad_v, keys, K, strides[2], D, D_PADDED)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch operators and autograd
# ---------------------------------------------------------------------------------------------------------------------


def _new(like):
    """Room for a tensor of the same shape [B, H, length, D], in memory [B, length, H, D]: as a projection wants it."""
    batch, heads, length, dim = like.shape
    return like.new_empty(batch, length, heads, dim).transpose(1, 2)


# As operators of PyTorch the launches are one node each to `torch.compile`, which looks no further. A model from the
# Hub brings a copy of this file: an operator registered twice under one name would take the first from its users.
OPERATORS = operator_namespace(__name__)


@torch.library.custom_op(f"{OPERATORS}::attend", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scaling: float,
    window: int | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as for `TritonRelativeAttention`; the output [B, H, Q, D] and its `lse` [B, H, Q]."""
    inputs = (query, key, value, table, key_mask, seed)
    output, lse = _outputs(*inputs)
    _launch(_attention_fwd_kernel, query.shape[2], inputs, (output, lse), scaling, window, dropout)
    return output, lse


@_attend.register_fake
def _outputs(query, *_):
    return _new(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op(f"{OPERATORS}::attend_backward", mutates_args=())
def _differentiate(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    output: torch.Tensor,
    lse: torch.Tensor,
    grad_output: torch.Tensor,
    scaling: float,
    window: int | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key, value and table, in their shapes and dtypes."""
    inputs = (query, key, value, table, key_mask, seed)
    grad_query, grad_key, grad_value, _ = gradients = _gradients(*inputs)
    grad_table = torch.zeros_like(table, dtype=torch.float32)
    deltas, far_sums = torch.empty_like(lse), torch.empty_like(lse)
    grad = (grad_output, grad_output.stride())

    tensors = (*grad, output, lse, grad_query, grad_table, deltas, far_sums)
    _launch(_attention_bwd_dq_kernel, query.shape[2], inputs, tensors, scaling, window, dropout)
    tensors = (*grad, lse, grad_key, grad_value, deltas, far_sums)
    _launch(_attention_bwd_dkv_kernel, key.shape[2], inputs, tensors, scaling, window, dropout)
    return *gradients[:3], grad_table.mul_(scaling).to(table.dtype)


@_differentiate.register_fake
def _gradients(query, key, value, table, *_):
    return _new(query), _new(key), _new(value), torch.empty_like(table)


def _launch(kernel, length, inputs, tensors, scaling, window, dropout):
    """Run a kernel for every tile of a length and every head of a batch row."""
    batch, heads, query_length, dim = inputs[0].shape
    key_length, table_length = inputs[1].shape[2], inputs[3].shape[1]
    with torch.cuda.device_of(inputs[0]):
        kernel[lambda choice: (batch * heads * triton.cdiv(length, choice["T"]),)](
            *inputs,
            *(tensor.stride() for tensor in inputs[:3]),
            *tensors,
            scaling * math.log2(math.e),
            window,
            query_length,
            key_length,
            table_length,
            heads,
            key_length.bit_length(),
            D=dim,
            D_PADDED=max(triton.next_power_of_2(dim), 16),
            DROPOUT=dropout,
        )


class TritonRelativeAttention(torch.autograd.Function):
    """Relative attention and its gradients by the kernels.

    They read queries, keys and values as they lie, heads or lengths first, views of one projection or a cache: only
    the numbers of a row must be neighbours. They write lengths first, as the output projection wants them.
    """

    @staticmethod
    def forward(ctx, query, key, value, table, key_mask, seed, scaling, window, dropout):
        """Arguments as for `triton_relative_attention`; `seed` [1] where there is dropout."""
        inputs = (query, key, value, table, key_mask, seed)
        output, lse = _attend(*inputs, scaling, window, dropout)
        ctx.save_for_backward(*inputs, output, lse)
        ctx.settings = (scaling, window, dropout)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        """Gradients of query, key, value and table."""
        gradients = _differentiate(*ctx.saved_tensors, _in_rows(grad_output), *ctx.settings)
        return *gradients, *[None] * 5


def _in_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the numbers of a row side by side in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _unsupported_reason(query: torch.Tensor) -> str | None:
    """Why the kernels cannot compute a query, as the end of a sentence about them; None if they can."""
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"compute in float16, bfloat16 and float32, not in {query.dtype}"
    if query.shape[-1] > 128:
        return f"hold head dimensions up to 128, not {query.shape[-1]}"
    if INTERPRETED:
        return None
    if not (query.is_cuda and torch.version.cuda):
        return f"are for GPUs of NVIDIA, and the query lies on {query.device}"
    gpu = torch.cuda.get_device_properties(query.device)
    if gpu.major < 8:
        return "need a GPU of compute capability 8.0 (Ampere) or later"
    # The largest kernel of wide rows in single precision asks for 112 KB; the GPUs of desktops have 99.
    if query.dtype == torch.float32 and query.shape[-1] > 64 and gpu.shared_memory_per_block_optin < 112 * 1024:
        return f"hold head dimensions up to 64 in float32 on this GPU, not {query.shape[-1]}"
    return None


def triton_relative_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_embeddings: torch.Tensor,
    scaling: float,
    key_mask: torch.Tensor | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal relative attention on a GPU: what `relative_attention` computes, in linear memory and one pass.

    All gradients but that of the embeddings are the same to the bit in every run; where that matters, under
    `torch.use_deterministic_algorithms`, take `blocked_relative_attention`. A query that sees no key yields zeros.

    Args:
        query: [B, H, Q, D], the last Q places of the sequence that the keys cover.
        key: [B, H, K, D] with K >= Q.
        value: [B, H, K, D].
        relative_embeddings: [H, M, D].
        scaling: factor on the logits, positive.
        key_mask: [B, K], false at padding; `None` when every key is real.
        window: how many keys a query sees, its own included; `None` for all.
        dropout: share of attention weights set to zero.

    Returns:
        [B, H, Q, D] in the dtype of the query; in memory [B, Q, H, D].

    Raises:
        ValueError: if the kernels cannot run on the device, or have no tiles for the dtype or the head dimension.
    """
    if reason := _unsupported_reason(query):
        raise ValueError(f"The Triton kernels {reason}; use blocked_relative_attention.")
    # The bits of the dropout stay on the device: no kernel waits for a number to come to Python.
    seed = torch.randint(2**62, (1,), device=query.device) if dropout else None
    return TritonRelativeAttention.apply(
        *map(_in_rows, (query, key, value)),
        relative_embeddings.to(query.dtype).contiguous(),
        None if key_mask is None else key_mask.contiguous(),
        seed,
        scaling,
        window,
        dropout,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Transformers' attention interface
# ---------------------------------------------------------------------------------------------------------------------


def triton_attention_forward(module: nn.Module, query: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, None]:
    """`blocked_attention_forward` with the kernels in place of the blocks, where they support the device."""
    if not _unsupported_reason(query):
        kwargs["fused"] = triton_relative_attention
    return blocked_attention_forward(module, query, *args, **kwargs)


TRITON = "triton_relative"
AttentionInterface.register(TRITON, triton_attention_forward)
AttentionMaskInterface.register(TRITON, blocked_mask)
