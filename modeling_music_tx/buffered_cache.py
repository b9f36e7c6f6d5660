"""Dynamic caches that grow in place: a new token is written behind the others, in memory reserved for it.

Transformers' dynamic cache concatenates, which copies all keys and values for every token. A tensor that a cache has
returned never changes, here as there: memory behind it is written only if nothing has been written there before.

Shape letters: B batch, H heads, N new keys, K keys, R rows of a buffer, D head dimension.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


class Buffer:
    """Memory for rows, and how many of them are written.

    Shallow copies of a cache share buffers and counts. Of two branches that continue the same rows, the first writes
    behind them, and the second gets a buffer of its own.

    Args:
        tensor: [B, H, R, D].
        filled: Rows written, from the first on.
    """

    def __init__(self, tensor: torch.Tensor, filled: int = 0):
        self.tensor, self.filled = tensor, filled


class BufferedLayer(DynamicLayer):
    """Transformers' layer for all keys and values, in a buffer."""

    __slots__ = ("buffers",)  # not in `__dict__`, all tensors of which the exporters take for contents of the cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, [B, H, N, D] each; returns all, [B, H, K, D]."""
        if must_concatenate():
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = extend(self, key_states, value_states)
        return self.keys, self.values


class BufferedSlidingWindowLayer(DynamicSlidingWindowLayer):
    """Transformers' layer for a window of keys and values, in a buffer."""

    __slots__ = ("buffers",)  # as above

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, [B, H, N, D] each; returns those that the new queries attend to, [B, H, K, D]."""
        # Layers that can be rolled back keep more than the window.
        if must_concatenate() or self.record_past:
            return super().update(key_states, value_states, *args, **kwargs)
        self.cumulative_length += key_states.shape[2]
        keys, values = extend(self, key_states, value_states)
        self.keys, self.values = (rows[:, :, -self.sliding_window + 1 :] for rows in (keys, values))
        return keys, values


def must_concatenate() -> bool:
    """Whether autograd or the compiler needs tensors that are not views of a buffer."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def extend(
    layer: BufferedLayer | BufferedSlidingWindowLayer, key_states: torch.Tensor, value_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's keys and values followed by new ones, in its buffers; shapes as for `append`."""
    if not layer.is_initialized:
        layer.lazy_initialization(key_states, value_states)
    key_buffer, value_buffer = getattr(layer, "buffers", (None, None))
    keys, key_buffer = append(layer.keys, key_states, key_buffer)
    values, value_buffer = append(layer.values, value_states, value_buffer)
    layer.buffers = (key_buffer, value_buffer)
    return keys, values


def append(rows: torch.Tensor, new: torch.Tensor, buffer: Buffer | None) -> tuple[torch.Tensor, Buffer]:
    """Append new rows to rows, in place if the memory behind them is reserved and unwritten.

    Args:
        rows: [B, H, K, D], or empty, of any shape.
        new: [B, H, N, D].
        buffer: The buffer that `rows` may be a part of; None for none yet.

    Returns:
        Both, [B, H, K + N, D], and the buffer that they are a part of.
    """
    count = rows.shape[2] if rows.numel() else 0
    total = count + new.shape[2]
    inside = (
        buffer is not None
        # Selected, repeated and concatenated rows lie in other memory.
        and rows.untyped_storage().data_ptr() == buffer.tensor.untyped_storage().data_ptr()
        and rows.shape[:2] == buffer.tensor.shape[:2]
        # Tensors made in inference mode must not be written outside of it.
        and buffer.tensor.is_inference() <= torch.is_inference_mode_enabled()
    )
    start = rows.storage_offset() // buffer.tensor.stride(2) if inside else 0
    if not inside or start + count != buffer.filled or start + total > buffer.tensor.shape[2]:
        start, buffer = 0, Buffer(new.new_empty(*new.shape[:2], total + total // 2, new.shape[3]))
        if count:
            buffer.tensor[:, :, :count] = rows
    buffer.tensor[:, :, start + count : start + total] = new
    buffer.filled = start + total
    return buffer.tensor[:, :, start : start + total], buffer


def use_buffers(cache: Cache) -> None:
    """Replace the empty layers of a dynamic cache by layers with buffers."""
    # Offloaded layers move between devices without their buffers.
    if cache.offloading or torch.compiler.is_compiling():
        return
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:
            continue
        if type(layer) is DynamicLayer:
            cache.layers[index] = BufferedLayer()
        elif type(layer) is DynamicSlidingWindowLayer and not layer.record_past:
            cache.layers[index] = BufferedSlidingWindowLayer(layer.sliding_window)
