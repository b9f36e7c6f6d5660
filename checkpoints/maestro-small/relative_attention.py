"""Relative global attention: the equation, then every faster way to compute it.

Shape letters used throughout: B batch, H heads, Q queries, K keys, D head dimension, M distances in the table.

Queries and keys of one call are neighbours in one sequence: query 0 stands `offset` places after key 0, so the
distance from query q back to key k is `offset + q - k`. That single number is all the position this attention ever
needs, which is why padding, caches and sliding windows leave it untouched.

Row `M - 1 - d` of an embedding table holds distance `d` (the paper's order). The rows for the distances that one query
meets along its keys then lie in the order of the keys, and the last row belongs to the query itself.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

# The scores of one block of queries should stay in the last-level cache between the passes over them. Measured on two
# cores with 32 MB of it: 4 to 8 MB are best, 2 MB and 16 MB cost 10 to 30 percent.
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
    """Causal relative attention written out: `softmax((Q Kᵀ + S) · scaling) V` with `S[q, k] = Q[q] · E[distance]`.

    It holds one embedding for every pair, O(Q K D) memory, and is here to be read and to judge the other ways by.

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
# Skewing: the relative logits of neighbouring queries from one product
# ---------------------------------------------------------------------------------------------------------------------


def band(relative_embeddings: torch.Tensor, length: int, padding: int) -> torch.Tensor:
    """The rows for the distances `length - 1 ... 0`, the farthest row repeated beyond the table, then rows of zeros.

    Args:
        relative_embeddings: [H, M, D].
        length: how many distances the band covers.
        padding: rows of zeros after them; `skew` wants as many as there are queries.

    Returns:
        [H, length + padding, D].
    """
    heads, table_length, dim = relative_embeddings.shape
    beyond = relative_embeddings[:, :1].expand(heads, max(length - table_length, 0), dim)
    known = relative_embeddings[:, max(table_length - length, 0) :]
    return torch.cat([beyond, known, relative_embeddings.new_zeros(heads, padding, dim)], dim=1)


def skew(products: torch.Tensor) -> torch.Tensor:
    """Moves the products of queries with a band so that column k belongs to key k.

    Query row r needs its products moved by `Q - 1 - r` columns to the left. With Q spare columns on the right that is
    a view of the same memory whose rows start one element earlier each: no copy and no gather. Columns of keys that
    lie in the future of a row hold products of its neighbour, for the causal mask to hide.

    Args:
        products: [N, Q, K + Q], contiguous: queries times `band(relative_embeddings, K, padding=Q)`.

    Returns:
        [N, Q, K], a view.

    Source: Huang et al. 2018, section 3.4.1, which pads, reshapes and slices copies instead.
    """
    batch, query_length, width = products.shape
    start = products.storage_offset() + query_length - 1
    return products.as_strided(
        (batch, query_length, width - query_length), (query_length * width, width - 1, 1), start
    )


def relative_logits(
    query: torch.Tensor, relative_embeddings: torch.Tensor, key_length: int, offset: int | torch.Tensor
) -> torch.Tensor:
    """The relative term of every query and key, as a bias that any attention backend can add.

    Args:
        query: [B, H, Q, D].
        relative_embeddings: [H, M, D].
        key_length: K.
        offset: distance from query 0 to key 0. A number reads the table by slice and skew. A tensor (a static cache
            counts in one, so that compiled code need not know it) of shape [] or of distances [B or 1, Q, K] gathers.

    Returns:
        [B, H, Q, K]; values for keys in the future are arbitrary and must be masked.
    """
    batch, heads, query_length, dim = query.shape
    by_head = query.transpose(0, 1).reshape(heads, batch * query_length, dim)  # one product a head, whatever the batch
    if isinstance(offset, torch.Tensor):
        distances = offset if offset.ndim else pairwise_distances(query_length, key_length, offset, query.device)[None]
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
        products = by_head @ band(relative_embeddings, reach, padding=query_length).transpose(1, 2)  # [H, B·Q, K + Q]
        logits = skew(products.view(heads * batch, query_length, -1)).unflatten(0, (heads, batch))
    if reach < key_length:
        # A static cache goes on after the last query's own key; the mask hides what is there.
        logits = nn.functional.pad(logits, (0, key_length - reach))
    return logits.transpose(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks: exact attention and gradients that never hold a Q x K tensor
# ---------------------------------------------------------------------------------------------------------------------


class BlockedRelativeAttention(torch.autograd.Function):
    """Relative attention and its gradients over blocks of queries; heads lead in every shape here.

    With heads first, the product of all of a head's queries with its band, and the gradient of that band, are one
    matrix product per head rather than one per head and batch row. The backward pass computes the block's
    probabilities once more instead of keeping them: memory is O(Q + block · K) in place of O(Q · K).
    """

    @staticmethod
    def forward(ctx, query, key, value, relative_embeddings, hidden_keys, window, dropout):
        """Arguments as for `blocked_relative_attention`, heads first and scaled; `hidden_keys` is true at padding."""
        table = band(relative_embeddings, key.shape[2], padding=query.shape[2])
        ctx.save_for_backward(query, key, value, table, hidden_keys)
        ctx.table_length = relative_embeddings.shape[1]
        # One draw from the global generator seeds the dropout of every block, again in the backward pass.
        ctx.settings = (window, dropout, int(torch.randint(2**62, ())) if dropout else 0)

        output = torch.empty_like(query)
        for block in _blocks(query, key, value, table, hidden_keys, *ctx.settings):
            _, kept = block.probabilities()
            output[:, :, block.queries] = (kept @ block.value).unflatten(0, query.shape[:2])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        """Gradients of query, key, value and relative embeddings."""
        saved = ctx.saved_tensors  # read once: activation checkpointing recomputes what is read twice
        query, key, value, table, _ = saved
        heads, batch, _, dim = query.shape
        grad_query = torch.empty_like(query)
        # Many blocks add up in these: half precision would lose the small late contributions.
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_key, grad_value, grad_table = (torch.zeros_like(tensor, dtype=wide) for tensor in (key, value, table))

        for block in _blocks(*saved, *ctx.settings):
            probabilities, kept = block.probabilities()
            grad_block = grad_output[:, :, block.queries].reshape(heads * batch, -1, dim)  # [H·B, c, D]
            grad_value[:, :, block.keys] += (kept.transpose(1, 2) @ grad_block).unflatten(0, (heads, batch))
            grad_kept = grad_block @ block.value.transpose(1, 2)  # [H·B, c, n]
            if block.dropout:
                grad_kept.mul_(block.dropout_mask(grad_kept))
            grad_scores = torch._softmax_backward_data(grad_kept, probabilities, -1, probabilities.dtype)
            grad_key[:, :, block.keys] += (grad_scores.transpose(1, 2) @ block.query).unflatten(0, (heads, batch))

            # The same view that read the relative logits writes their gradient, between corners that stay zero.
            grad_products = torch.zeros_like(block.products)  # [H, B·c, n + c]
            block.skewed(grad_products).copy_(grad_scores)
            grad_rows = (grad_products @ block.table).view(block.query.shape)
            grad_query[:, :, block.queries] = torch.baddbmm(grad_rows, grad_scores, block.key).unflatten(
                0, (heads, batch)
            )
            grad_table[:, block.rows] += grad_products.transpose(1, 2) @ block.query.view(heads, -1, dim)

        reach = key.shape[2]
        known = min(reach, ctx.table_length)
        grad_embeddings = grad_table.new_zeros(heads, ctx.table_length, dim)
        grad_embeddings[:, ctx.table_length - known :] = grad_table[:, reach - known : reach]
        grad_embeddings[:, 0] += grad_table[:, : reach - known].sum(1)
        return (
            grad_query,
            grad_key.to(key.dtype),
            grad_value.to(value.dtype),
            grad_embeddings.to(table.dtype),
            *[None] * 3,
        )


class _Block:
    """One block of queries, the keys in its reach and the band of embeddings between them; c queries, n keys."""

    def __init__(self, start, stop, query, key, value, table, hidden_keys, window, dropout, seed):
        heads, batch, query_length, dim = query.shape
        reach = key.shape[2]
        last_key = reach - query_length + stop
        first_key = 0 if window is None else max(last_key - (stop - start) - window + 1, 0)
        length = last_key - first_key

        self.queries, self.keys = slice(start, stop), slice(first_key, last_key)
        self.rows = slice(reach - length, reach + stop - start)
        self.query = query[:, :, self.queries].contiguous().view(heads * batch, -1, dim)  # [H·B, c, D]
        self.key = key[:, :, self.keys].reshape(heads * batch, length, dim)  # [H·B, n, D]
        self.value = value[:, :, self.keys].reshape(heads * batch, length, dim)  # [H·B, n, D]
        self.table = table[:, self.rows]  # [H, n + c, D]
        self.hidden_keys = None if hidden_keys is None else hidden_keys[:, None, self.keys]  # [B, 1, n]
        self.window, self.dropout, self.seed = window, dropout, seed + start

    def skewed(self, products: torch.Tensor) -> torch.Tensor:
        """The view [H·B, c, n] of products [H, B·c, n + c] in which column k belongs to key k."""
        return skew(products.view(*self.query.shape[:2], -1))

    def probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention weights [H·B, c, n], before and after dropout."""
        block_length, dim = self.query.shape[1:]
        heads, length = self.table.shape[0], self.key.shape[1]
        self.products = self.query.view(heads, -1, dim) @ self.table.transpose(1, 2)  # [H, B·c, n + c]
        scores = torch.baddbmm(self.skewed(self.products), self.query, self.key.transpose(1, 2))  # [H·B, c, n]

        corner = torch.ones(block_length, block_length, dtype=torch.bool, device=scores.device)
        scores[:, :, length - block_length :].masked_fill_(corner.triu(1), -torch.inf)
        if self.window is not None:
            # Row r reaches back `window` keys; the block's first key is the farthest of its first row.
            spare = block_length + self.window - 1 - length
            scores[:, :, :block_length].masked_fill_(corner.tril(-1 - spare), -torch.inf)
        if self.hidden_keys is not None:
            # The lowest number rather than infinity: a row of padding, with no key to see, stays finite.
            lowest = torch.finfo(scores.dtype).min
            scores.unflatten(0, (heads, -1)).masked_fill_(self.hidden_keys, lowest)

        probabilities = scores.softmax(-1)
        return probabilities, probabilities * self.dropout_mask(probabilities) if self.dropout else probabilities

    def dropout_mask(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros, and `1 / (1 - dropout)` where a weight is kept: the same in every call."""
        generator = torch.Generator(like.device).manual_seed(self.seed)
        keep = torch.empty_like(like).bernoulli_(1 - self.dropout, generator=generator)
        return keep.div_(1 - self.dropout)


def _blocks(query, key, value, table, hidden_keys, window, dropout, seed):
    """The blocks of queries of one call, in order."""
    heads, batch, query_length, _ = query.shape
    reach = key.shape[2] if window is None else min(key.shape[2], window)
    rows = max(BLOCK_BYTES // (heads * batch * reach * query.element_size()), 1)
    length = min(max(1 << (rows.bit_length() - 1), 32), 256)
    for start in range(0, query_length, length):
        stop = min(start + length, query_length)
        yield _Block(start, stop, query, key, value, table, hidden_keys, window, dropout, seed)


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
    # Autocast would widen the softmax of every block to single precision and narrow it again for the next product.
    with torch.autocast(query.device.type, enabled=False):
        output = BlockedRelativeAttention.apply(
            *heads_first,
            relative_embeddings.to(query.dtype),
            None if key_mask is None else ~key_mask,
            window,
            dropout,
        )
    return output.transpose(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Faces for Transformers' attention interface
# ---------------------------------------------------------------------------------------------------------------------


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
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The default attention: blocks of queries where the pattern is plain, the bias through sdpa elsewhere.

    Blocks need the pattern that `blocked_mask` vouches for by returning no mask or a mask of keys. One query at a
    time, a static cache or a mask of the caller's own goes through sdpa, where the bias is small or the pattern free.
    """
    query_length, key_length = query.shape[2], key.shape[2]
    plain_mask = attention_mask is None or attention_mask.ndim == 2
    neighbours = isinstance(offset, int) and offset == key_length - query_length
    if relative_embeddings is not None and query_length > 1 and plain_mask and neighbours:
        output = blocked_relative_attention(
            query, key, value, relative_embeddings, scaling, attention_mask, sliding_window, dropout
        )
        return output.transpose(1, 2), None  # [B, Q, H, D]

    bias = None
    if relative_embeddings is not None:
        bias = relative_logits(query, relative_embeddings.to(query.dtype), key_length, offset) * scaling
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=bias, **kwargs
    )


def blocked_mask(*args, **kwargs) -> torch.Tensor | None:
    """The mask for `blocked_attention_forward`: [B, K] or none for plain causal patterns, sdpa's own for all others.

    Transformers forbids to skip the mask (`allow_is_causal_skip=False`) exactly when the pattern is more than causal,
    windowed and padded: packed sequences, overlays, compiled decoding.
    """
    query_length, key_length = kwargs["q_length"], kwargs["kv_length"]
    query_offset, key_offset, key_mask = kwargs["q_offset"], kwargs["kv_offset"], kwargs["attention_mask"]
    plain = kwargs.get("allow_is_causal_skip", True) and query_length > 1 and not torch.compiler.is_exporting()
    # The length of a static cache is a tensor once it holds something, and exceeds what the queries reach.
    neighbours = isinstance(query_offset, int) and query_offset + query_length == key_offset + key_length
    if not (plain and neighbours):
        return sdpa_mask(*args, **kwargs)
    if key_mask is None:
        return None
    key_mask = key_mask[:, key_offset:]
    return None if key_mask.all() else key_mask


BLOCKED = "blocked_relative"
AttentionInterface.register(BLOCKED, blocked_attention_forward)
AttentionMaskInterface.register(BLOCKED, blocked_mask)
