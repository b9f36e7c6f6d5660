"""Keys and values that grow in place: a token is written behind those before, and nothing else moves.

Transformers' dynamic cache concatenates, which copies all keys and values for every token.

Shape letters: B batch, H heads, N new keys, K keys, R rows of a buffer, D head dimension.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


class BufferedLayer(DynamicLayer):
    """Transformers' layer for all keys and values, in a buffer."""

    key_buffer = value_buffer = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values, [B, H, N, D] each; returns all, [B, H, K, D]."""
        if must_concatenate():
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = extend(self, key_states, value_states)
        return self.keys, self.values


class BufferedSlidingWindowLayer(DynamicSlidingWindowLayer):
    """Transformers' layer for a window of keys and values, in a buffer."""

    key_buffer = value_buffer = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values, [B, H, N, D] each; returns those that the new queries may see, [B, H, K, D]."""
        # Tokens that may be taken back keep more than the window.
        if must_concatenate() or self.record_past:
            return super().update(key_states, value_states, *args, **kwargs)
        self.cumulative_length += key_states.shape[2]
        keys, values = extend(self, key_states, value_states)
        self.keys, self.values = (rows[:, :, -self.sliding_window + 1 :] for rows in (keys, values))
        return keys, values


def must_concatenate() -> bool:
    """Whether autograd or the compiler keep what is returned, so that nobody may write behind it."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def extend(
    layer: BufferedLayer | BufferedSlidingWindowLayer, key_states: torch.Tensor, value_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's keys and values followed by new ones, in its buffers; shapes as for `append`."""
    if not layer.is_initialized:
        layer.lazy_initialization(key_states, value_states)
    keys, layer.key_buffer = append(layer.keys, key_states, layer.key_buffer)
    values, layer.value_buffer = append(layer.values, value_states, layer.value_buffer)
    return keys, values


def append(rows: torch.Tensor, new: torch.Tensor, buffer: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows followed by new ones, in memory that has been set aside for that.

    Args:
        rows: [B, H, K, D], or empty, of any shape.
        new: [B, H, N, D].
        buffer: [B, H, R, D]; if `rows` are a part of it, the new ones are written behind them as long as there is
            room. None for none yet.

    Returns:
        Both, [B, H, K + N, D], and the buffer that they are a part of.
    """
    count = rows.shape[2] if rows.numel() else 0
    total = count + new.shape[2]
    inside = (
        buffer is not None
        # Rows that were selected or repeated lie elsewhere, and so do those of a concatenation.
        and rows.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        and rows.shape[:2] == buffer.shape[:2]
        # What inference mode has made may not be written into once that mode is left.
        and buffer.is_inference() <= torch.is_inference_mode_enabled()
    )
    start = rows.storage_offset() // buffer.stride(2) if inside else 0
    if not inside or start + total > buffer.shape[2]:
        start, buffer = 0, new.new_empty(*new.shape[:2], total + total // 2, new.shape[3])
        if count:
            buffer[:, :, :count] = rows
    buffer[:, :, start + count : start + total] = new
    return buffer[:, :, start : start + total], buffer


def use_buffers(cache: Cache):
    """Exchanges the layers of a dynamic cache that holds nothing yet for layers with buffers."""
    # Offloaded layers leave their device after each step, without their buffers.
    if cache.offloading or torch.compiler.is_compiling():
        return
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:
            continue
        if type(layer) is DynamicLayer:
            cache.layers[index] = BufferedLayer()
        elif type(layer) is DynamicSlidingWindowLayer and not layer.record_past:
            cache.layers[index] = BufferedSlidingWindowLayer(layer.sliding_window)
