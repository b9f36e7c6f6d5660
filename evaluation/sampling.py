"""Samples for a report, and excerpts of real pieces that are cut in the same way."""

from collections.abc import Iterable, Mapping

import numpy as np
from symusic import Score
from transformers import set_seed

from tokenization import MusicTxTokenizer, generate_music


def sample_scores(
    model,
    tokenizer: MusicTxTokenizer,
    num_samples: int,
    seconds: float,
    seed: int,
    min_p: float = 0.02,
    controls: Mapping | None = None,
) -> list[Score]:
    """Generate pieces from nothing.

    Args:
        model: A causal language model over the tokenizer's ids.
        tokenizer: The tokenizer.
        num_samples: Number of pieces.
        seconds: Length of each, unless the model ends it earlier.
        seed: The same seed gives the same pieces.
        min_p: As for `generate`.
        controls: As for `generate_music`.

    Returns:
        The pieces.
    """
    set_seed(seed)
    samples = generate_music(
        model,
        tokenizer,
        seconds=seconds,
        num_samples=num_samples,
        controls=controls,
        do_sample=True,
        min_p=min_p,
        top_p=1.0,
        top_k=0,
    )
    return [tokenizer.to_score(ids) for ids in samples]


def excerpt_scores(pieces: Iterable[np.ndarray], tokenizer: MusicTxTokenizer, seconds: float) -> list[Score]:
    """Cut pieces as generated ones are cut: at the token that reaches the time, where all notes end.

    Args:
        pieces: The ids of each piece, `[L]`.
        tokenizer: Their tokenizer.
        seconds: Length of each excerpt.

    Returns:
        The excerpts, from the beginning of each piece.
    """
    token_seconds = tokenizer.token_seconds
    scores = []
    for ids in pieces:
        # Half a step less: sums of hundredths of a second are not exact.
        end = np.searchsorted(token_seconds[ids].cumsum(), seconds - 0.005) + 1
        scores.append(tokenizer.to_score(ids[:end]))
    return scores
