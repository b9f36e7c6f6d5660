"""Relative global attention: the equation, then every faster way to compute it.

Shape letters used throughout: B batch, H heads, Q queries, K keys, D head dimension, M distances in the table.

Queries and keys of one call are consecutive in one sequence: query 0 is `offset` positions after key 0, so the
distance from query q back to key k is `offset + q - k`. The offset is the only position that this attention needs, so
padding, caches and sliding windows do not change it. `distances` take its place where positions are not consecutive.

Row `M - 1 - d` of an embedding table holds distance `d` (the paper's order). The rows for the distances from one query
to its keys are then in the order of the keys, and the last row is that of the query's own key.
"""

import math
import re
import zlib
from collections.abc import Callable

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Queries in a block: half as many cost 8 to 10 percent at 8,192 keys or a batch of 8, and nothing at 2,048 keys.
BLOCK_QUERIES = 128

# The scores of one block should stay in the last-level cache between the passes over them: a block has as many heads
# as come to this. Measured on two cores with 32 MB of it: 4 to 8 MB are best, 2 MB and 16 MB cost 10 to 30 percent.
BLOCK_BYTES = 2**22


# ---------------------------------------------------------------------------------------------------------------------
# The equation
# ---------------------------------------------------------------------------------------------------------------------


def relative_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_embeddings: torch.Tensor,
    scaling: float,
    offset: int = 0,
) -> torch.Tensor:
    """Causal relative attention by its definition, `softmax((Q Kᵀ + S) · scaling) V`, `S[q, k] = Q[q] · E[distance]`.

    It needs one embedding for every pair, O(Q K D) memory, and serves as the reference for the other implementations.

    Args:
        query: [B, H, Q, D].
        key: [B, H, K, D].
        value: [B, H, K, D].
        relative_embeddings: [H, M, D]; farther distances than M - 1 share the farthest row.
        scaling: factor on the logits, `D ** -0.5` in the paper.
        offset: distance from query 0 to key 0.

    Returns:
        [B, H, Q, D].

    Source: Huang et al. 2018 (arXiv 1809.04281), equation 3; the relative term after Shaw et al. 2018, equation 5.
    """
    distances = pairwise_distances(query.shape[2], key.shape[2], offset, query.device)  # [Q, K]
    pair_embeddings = relative_embeddings[:, _rows(distances, relative_embeddings)]  # [H, Q, K, D]
    relative_logits = torch.einsum("bhqd,hqkd->bhqk", query, pair_embeddings)
    logits = (query @ key.transpose(-1, -2) + relative_logits) * scaling  # [B, H, Q, K]
    return logits.masked_fill(distances < 0, -torch.inf).softmax(-1) @ value


def pairwise_distances(
    query_length: int, key_length: int, offset: int | torch.Tensor, device: torch.device | str
) -> torch.Tensor:
    """Distances from each query back to each key, [Q, K]; negative where the key lies in the future."""
    query_positions = torch.arange(query_length, device=device) + offset
    return query_positions[:, None] - torch.arange(key_length, device=device)


def _rows(distances: torch.Tensor, relative_embeddings: torch.Tensor) -> torch.Tensor:
    """Rows of the table that hold the given distances; the future, which a mask hides, reads row M - 1."""
    farthest = relative_embeddings.shape[1] - 1
    return farthest - distances.clamp(0, farthest)


# ---------------------------------------------------------------------------------------------------------------------
# Skewing: the relative logits of consecutive queries from one product
# ---------------------------------------------------------------------------------------------------------------------


def band(relative_embeddings: torch.Tensor, length: int) -> torch.Tensor:
    """The rows for the distances `length - 1 ... 0`, the farthest row repeated beyond the table, then a row of zeros.

    Args:
        relative_embeddings: [H, M, D].
        length: how many distances the band covers.

    Returns:
        [H, length + 1, D].
    """
    heads, table_length, dim = relative_embeddings.shape
    beyond = relative_embeddings[:, :1].expand(heads, max(length - table_length, 0), dim)
    known = relative_embeddings[:, max(table_length - length, 0) :]
    return torch.cat([beyond, known, relative_embeddings.new_zeros(heads, 1, dim)], dim=1)


def skew(products: torch.Tensor) -> torch.Tensor:
    """Moves the products of queries with a band so that column k belongs to key k.

    Query row r needs its products shifted by `Q - 1 - r` columns to the left. With one spare column, a view of the
    same memory in rows of K, from element `Q - 1` on, is that shift: no copy and no gather. Columns of keys in the
    future of a row hold products of the next row, which the causal mask hides.

    Args:
        products: [N, Q, K + 1], contiguous: queries times `band(relative_embeddings, K)`.

    Returns:
        [N, Q, K], a view.

    Source: Huang et al. 2018, section 3.4.1, which pads, reshapes and slices copies of a [Q, Q] matrix instead.
    """
    batch, query_length, width = products.shape
    return products.view(batch, -1)[:, query_length - 1 : -1].view(batch, query_length, width - 1)


def relative_logits(
    query: torch.Tensor,
    relative_embeddings: torch.Tensor,
    key_length: int,
    offset: int | torch.Tensor = 0,
    distances: torch.Tensor | None = None,
) -> torch.Tensor:
    """The relative term of every query and key, as a bias that any attention backend can add.

    Args:
        query: [B, H, Q, D].
        relative_embeddings: [H, M, D].
        key_length: K.
        offset: distance from query 0 to key 0. With a number, the table is read by slice and skew; with a tensor [],
            as static caches count in, by gather.
        distances: [B or 1, Q, K], in place of the offset where positions are not consecutive; read by gather.

    Returns:
        [B, H, Q, K]; values for keys in the future are arbitrary and must be masked.
    """
    batch, heads, query_length, dim = query.shape
    by_head = query.transpose(0, 1).reshape(heads, batch * query_length, dim)  # one product a head, whatever the batch
    # An exported program takes other lengths than its example, which a view of the same memory cannot.
    if distances is not None or isinstance(offset, torch.Tensor) or torch.compiler.is_exporting():
        if distances is None:
            distances = pairwise_distances(query_length, key_length, offset, query.device)[None]
            if not torch.compiler.is_exporting():
                relative_embeddings = relative_embeddings[:, -key_length:]  # no distance is K or more
        products = (by_head @ relative_embeddings.transpose(1, 2)).view(heads, batch, query_length, -1)
        rows = _rows(distances, relative_embeddings).expand(heads, batch, query_length, key_length)
        return products.gather(-1, rows).transpose(0, 1)

    reach = offset + query_length
    if query_length == 1:
        # The last rows of the table line up with the keys as they are: no copy of the table, whatever its length.
        known = relative_embeddings[:, max(relative_embeddings.shape[1] - reach, 0) :]
        logits = by_head @ known.transpose(1, 2)  # [H, B, min(K, M)]
        if known.shape[1] < reach:
            logits = nn.functional.pad(logits, (reach - known.shape[1], 0), mode="replicate")
        logits = logits[:, :, None]
    else:
        products = by_head @ band(relative_embeddings, reach).transpose(1, 2)  # [H, B·Q, K + 1]
        logits = skew(products.view(heads * batch, query_length, -1)).unflatten(0, (heads, batch))
    if reach < key_length:
        # A static cache goes on after the last query's own key; the mask hides what is there.
        logits = nn.functional.pad(logits, (0, key_length - reach))
    return logits.transpose(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks: exact attention and gradients that never hold a Q x K tensor
# ---------------------------------------------------------------------------------------------------------------------


def operator_namespace(module: str) -> str:
    """Return a namespace for the operators of a module: a valid identifier, different for each name of a module.

    A model from the Hub brings a copy of this file, whose operators must not replace those of another copy. Its module
    is named after a folder, which may have any name.
    """
    name = re.sub(r"\W", "_", module, flags=re.ASCII)
    return name if name == module.replace(".", "_") else f"{name}_{zlib.crc32(module.encode()):08x}"


OPERATORS = operator_namespace(__name__)


@torch.library.custom_op(f"{OPERATORS}::attend", mutates_args=())
def _blocked_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    hidden_keys: torch.Tensor | None,
    window: int | None,
    dropout: float,
    seed: torch.Tensor | None,
) -> torch.Tensor:
    """The output of all blocks; an operator of its own, so that compiled code calls it whole.

    Args:
        query: [H, B, Q, D], scaled. Heads come first here: the product of all of a head's queries with its band, and
            the gradient of that band, are then one matrix product per head rather than one per head and batch row.
        key, value: [H, B, K, D].
        table: [H, K + 1, D], the band of all keys.
        hidden_keys: [B, K], true at padding.
        window, dropout: as for `blocked_relative_attention`.
        seed: of the dropout, a number that the backward pass is given again.

    Returns:
        [H, B, Q, D].
    """
    output = torch.empty_like(query)
    for block in _blocks(query, key, value, table, hidden_keys, window, dropout, seed):
        _, kept = block.probabilities()
        output[block.heads, :, block.queries] = block.unflatten(kept @ block.value)
    return output


@torch.library.custom_op(f"{OPERATORS}::differentiate", mutates_args=())
def _blocked_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    hidden_keys: torch.Tensor | None,
    window: int | None,
    dropout: float,
    seed: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key, value and table.

    The probabilities of a block are recomputed rather than kept: memory is O(Q + block) instead of O(Q · K).
    """
    grad_query = torch.empty_like(query)
    # Sums over many blocks: half precision would lose small contributions.
    wide = torch.promote_types(query.dtype, torch.float32)
    grad_key, grad_value, grad_table = (torch.zeros_like(tensor, dtype=wide) for tensor in (key, value, table))

    for block in _blocks(query, key, value, table, hidden_keys, window, dropout, seed):
        probabilities, kept = block.probabilities()
        grad_block = grad_output[block.heads, :, block.queries].reshape(block.query.shape)  # [N, c, D]
        grad_value[block.heads, :, block.keys] += block.unflatten(kept.transpose(1, 2) @ grad_block)
        grad_scores = torch.bmm(grad_block, block.value.transpose(1, 2), out=block.memory(2, *probabilities.shape))
        if dropout:
            grad_scores.mul_(block.keep)
        torch._softmax_backward_data(grad_scores, probabilities, -1, grad_scores.dtype, grad_input=grad_scores)
        grad_key[block.heads, :, block.keys] += block.unflatten(grad_scores.transpose(1, 2) @ block.query)

        # The view that read the relative logits writes their gradient; for keys in the future these are zeros, which
        # are the gradients of products of the next row that no key used. The elements outside the view are set to
        # zero.
        grad_products = block.products
        grad_products.view(len(block.query), -1)[:, : block.query.shape[1] - 1] = 0
        grad_products.view(len(block.query), -1)[:, -1] = 0
        block.skewed(grad_products).copy_(grad_scores)
        grad_rows = (grad_products @ block.table).view(block.query.shape)
        grad_query[block.heads, :, block.queries] = block.unflatten(torch.baddbmm(grad_rows, grad_scores, block.key))
        grad_table[block.heads, block.rows] += grad_products.transpose(1, 2) @ block.query_by_head
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_table.to(table.dtype)


@_blocked_forward.register_fake
def _(query, *args):
    return torch.empty_like(query)


@_blocked_backward.register_fake
def _(grad_output, query, key, value, table, *args):
    return tuple(torch.empty_like(tensor) for tensor in (query, key, value, table))


def _save(ctx, inputs, output):
    *tensors, window, dropout, seed = inputs
    ctx.save_for_backward(*tensors, seed)
    ctx.settings = (window, dropout)


def _differentiate(ctx, grad_output):
    *tensors, seed = ctx.saved_tensors
    return *_blocked_backward(grad_output, *tensors, *ctx.settings, seed), None, None, None, None


_blocked_forward.register_autograd(_differentiate, setup_context=_save)


class _Block:
    """A block of queries of some heads, the keys that it attends to, and the band of embeddings between them.

    Letters: G heads, N = G·B sequences, c queries, n keys.
    """

    def __init__(self, heads, start, stop, query, key, value, table, hidden_keys, window, dropout, generator, pool):
        _, _, query_length, dim = query.shape
        reach = key.shape[2]
        last_key = reach - query_length + stop
        first_key = 0 if window is None else max(last_key - (stop - start) - window + 1, 0)
        length = last_key - first_key

        self.heads, self.queries, self.keys = heads, slice(start, stop), slice(first_key, last_key)
        self.rows = slice(reach - length, reach + 1)
        self.query = query[heads, :, self.queries].contiguous().view(-1, stop - start, dim)  # [N, c, D]
        self.key = key[heads, :, self.keys].reshape(-1, length, dim)  # [N, n, D]
        self.value = value[heads, :, self.keys].reshape(-1, length, dim)  # [N, n, D]
        self.table = table[heads, self.rows]  # [G, n + 1, D]
        self.query_by_head = self.query.view(len(self.table), -1, dim)  # [G, B·c, D]
        self.hidden_keys = None if hidden_keys is None else hidden_keys[:, None, self.keys]  # [B, 1, n]
        self.window, self.dropout, self.generator, self.pool = window, dropout, generator, pool

    def memory(self, index: int, *shape: int) -> torch.Tensor:
        """Return one of three matrices that all blocks reuse: the first use of new memory is slow."""
        return self.pool[index, : math.prod(shape)].view(shape)

    def unflatten(self, tensor: torch.Tensor) -> torch.Tensor:
        """[N, ...] to [G, B, ...]."""
        return tensor.unflatten(0, (len(self.table), -1))

    def skewed(self, products: torch.Tensor) -> torch.Tensor:
        """The view [N, c, n] of products [G, B·c, n + 1] in which column k belongs to key k."""
        return skew(products.view(*self.query.shape[:2], -1))

    def probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention weights [N, c, n], before and after dropout."""
        block_length, length = self.query.shape[1], self.key.shape[1]
        self.products = self.memory(0, *self.query_by_head.shape[:2], length + 1)  # [G, B·c, n + 1]
        torch.bmm(self.query_by_head, self.table.transpose(1, 2), out=self.products)
        scores = self.memory(1, len(self.query), block_length, length)  # [N, c, n]
        torch.baddbmm(self.skewed(self.products), self.query, self.key.transpose(1, 2), out=scores)

        hidden = scores.new_full((block_length, block_length), -torch.inf)
        scores[:, :, length - block_length :] += hidden.triu(1)
        if self.window is not None:
            # Row r attends to `window` keys; the block's first key is the farthest of its first row.
            spare = block_length + self.window - 1 - length
            scores[:, :, :block_length] += hidden.tril(-1 - spare)
        if self.hidden_keys is not None:
            # The lowest number rather than infinity: a row of padding without any key stays finite.
            self.unflatten(scores).masked_fill_(self.hidden_keys, torch.finfo(scores.dtype).min)

        probabilities = torch.softmax(scores, -1, out=scores)
        if not self.dropout:
            return probabilities, probabilities
        # Zeros, and `1 / (1 - dropout)` where a weight is kept.
        self.keep = torch.empty_like(probabilities).bernoulli_(1 - self.dropout, generator=self.generator)
        self.keep.div_(1 - self.dropout)
        return probabilities, probabilities * self.keep


def _blocks(query, key, value, table, hidden_keys, window, dropout, seed):
    """Yield the blocks of one call, always in the same order, so that dropout draws the same random numbers again."""
    heads, batch, query_length, _ = query.shape
    reach = key.shape[2] if window is None else min(key.shape[2], window + BLOCK_QUERIES - 1)
    rows = batch * min(BLOCK_QUERIES, query_length)  # of the scores of one head
    # A power of two, and at least two sequences: products are distributed over cores by sequence.
    fitting = BLOCK_BYTES // (rows * reach * query.element_size())
    group = min(max(1 << fitting.bit_length() >> 1, -(-2 // batch)), heads)
    generator = torch.Generator(query.device).manual_seed(seed.item()) if dropout else None
    pool = query.new_empty(3, group * rows * (reach + 1))
    for first_head in range(0, heads, group):
        for start in range(0, query_length, BLOCK_QUERIES):
            yield _Block(
                slice(first_head, first_head + group),
                start,
                min(start + BLOCK_QUERIES, query_length),
                *(query, key, value, table, hidden_keys, window, dropout, generator, pool),
            )


def blocked_relative_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_embeddings: torch.Tensor,
    scaling: float,
    key_mask: torch.Tensor | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal relative attention in blocks of queries: what `relative_attention` computes, in linear extra memory.

    Args:
        query: [B, H, Q, D], the last Q places of the sequence that the keys cover.
        key: [B, H, K, D] with K >= Q.
        value: [B, H, K, D].
        relative_embeddings: [H, M, D].
        scaling: factor on the logits.
        key_mask: [B, K], false at padding; `None` when every key is real.
        window: how many keys a query sees, its own included; `None` for all.
        dropout: share of attention weights set to zero.

    Returns:
        [B, H, Q, D] in the dtype of the query.

    Source: Huang et al. 2018, section 3.4; blocks and recomputation after Dao et al. 2022 (arXiv 2205.14135).
    """
    heads_first = [tensor.transpose(0, 1).contiguous() for tensor in (query * scaling, key, value)]  # [H, B, ·, D]
    # Without autocast, which would convert the softmax of every block to single precision and back.
    # The meta device has no autocast.
    device = query.device.type if torch.amp.is_autocast_available(query.device.type) else "cpu"
    with torch.autocast(device, enabled=False):
        output = _blocked_forward(
            *heads_first,
            band(relative_embeddings.to(query.dtype), key.shape[2]),
            None if key_mask is None else ~key_mask,
            window,
            dropout,
            torch.randint(2**62, ()) if dropout else None,
        )
    return output.transpose(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Transformers' attention interface
# ---------------------------------------------------------------------------------------------------------------------


def queries_end_the_keys(query_length: int, key_length: int, offset: int | torch.Tensor) -> bool:
    """Whether the last query's own key is the last key; not with a static cache, which counts in a tensor."""
    return isinstance(offset, int) and offset + query_length == key_length


def takes_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    offset: int | torch.Tensor,
    distances: torch.Tensor | None,
) -> bool:
    """Whether blocked attention and the kernels can compute a call: a causal one, with at most a mask of keys.

    One query, a static cache, distances and 4D masks go through sdpa, where the bias is small or the pattern
    arbitrary.
    """
    is_plain = distances is None and (attention_mask is None or attention_mask.ndim == 2)
    return is_plain and query.shape[2] > 1 and queries_end_the_keys(query.shape[2], key.shape[2], offset)


def blocked_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    relative_embeddings: torch.Tensor | None = None,
    offset: int | torch.Tensor = 0,
    distances: torch.Tensor | None = None,
    sliding_window: int | None = None,
    fused: Callable[..., torch.Tensor] = blocked_relative_attention,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The default attention: `fused` if `takes_blocks`, otherwise a bias through sdpa."""
    if kwargs.pop("output_attentions", False):
        implementation = module.config._attn_implementation
        logger.warning_once(f'attn_implementation "{implementation}" returns no attention weights; use "eager".')
    if relative_embeddings is not None and takes_blocks(query, key, attention_mask, offset, distances):
        output = fused(query, key, value, relative_embeddings, scaling, attention_mask, sliding_window, dropout)
        return output.transpose(1, 2), None  # [B, Q, H, D]

    bias = None
    if relative_embeddings is not None:
        embeddings = relative_embeddings.to(query.dtype)
        bias = relative_logits(query * scaling, embeddings, key.shape[2], offset, distances)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=bias, **kwargs
    )


def blocked_mask(*args, **kwargs) -> torch.Tensor | None:
    """The mask for `blocked_attention_forward`: [B, K] or None if `takes_blocks` may hold, otherwise sdpa's.

    Transformers sets `allow_is_causal_skip=False` exactly when the pattern is more than causal, windowed and padded:
    packed sequences, overlays, compiled decoding.
    """
    query_length, key_length = kwargs["q_length"], kwargs["kv_length"]
    query_offset, key_offset, key_mask = kwargs["q_offset"], kwargs["kv_offset"], kwargs["attention_mask"]
    is_plain = kwargs.get("allow_is_causal_skip", True) and query_length > 1 and not torch.compiler.is_exporting()
    if not (is_plain and queries_end_the_keys(query_length, key_length, query_offset - key_offset)):
        return sdpa_mask(*args, **kwargs)
    if key_mask is None:
        return None
    key_mask = key_mask[:, key_offset:]
    # Values cannot be read while compiling or on the meta device.
    is_readable = not torch.compiler.is_compiling() and key_mask.device.type != "meta"
    return None if is_readable and key_mask.all() else key_mask


BLOCKED = "blocked_relative"
AttentionInterface.register(BLOCKED, blocked_attention_forward)
AttentionMaskInterface.register(BLOCKED, blocked_mask)
