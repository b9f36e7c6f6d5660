"""The attention of each head of a model by distance."""

import numpy as np
import torch

from corpus.dataset import IGNORED, EvaluationWindows

# Windows to average over, spread evenly over a split.
WINDOWS = 8


def octaves(length: int) -> list[tuple[int, int]]:
    """Divide the distances in a window: 0, 1, 2 to 3, 4 to 7 and so on, first and last of each."""
    return [(2**octave // 2, 2**octave - 1) for octave in range((length - 1).bit_length() + 1)]


@torch.no_grad()
def attention_by_distance(model: torch.nn.Module, windows: EvaluationWindows) -> np.ndarray:
    """Average a model's attention over real music.

    Args:
        model: A causal language model of Transformers. From here on it attends step by step ("eager"), which is slow.
        windows: Windows of a split.

    Returns:
        The share of each octave of distances in a head's attention, averaged over the queries in the second halves of
        the windows, which have enough context. `[layers, heads, octaves]`, adding up to 1 along the last.
    """
    model.set_attn_implementation("eager")
    model.eval()
    shares = 0
    chosen = np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).astype(int)
    for index in chosen:
        example = windows[int(index)]
        ids = example["input_ids"][example["labels"] != IGNORED].to(model.device)
        attentions = model(ids[None], output_attentions=True, use_cache=False).attentions
        queries = torch.arange(len(ids) // 2, len(ids))
        distances = (queries[:, None] - torch.arange(len(ids))).clamp(min=0)  # what is masked has no share
        # The exponent of a power of two is the number of its octave.
        octave = torch.frexp(distances.float()).exponent.long().flatten().to(model.device)
        weights = torch.stack([attention[0, :, queries[0] :] for attention in attentions]).float()
        totals = weights.new_zeros(*weights.shape[:2], len(octaves(windows.length)))
        shares = shares + totals.index_add_(-1, octave, weights.flatten(2)).cpu().numpy() / len(queries)
    return shares / len(chosen)
