"""Music to be judged: what a model plays from nothing, and as much from the beginnings of real pieces."""

from collections.abc import Iterable

import numpy as np
import torch
from symusic import Score
from transformers import set_seed

from tokenization import MaxSeconds, MusicTxTokenizer, piano_logits_processors

# MAESTRO averages 40 tokens per second, 116 in its busiest half minute; a model that needs more has lost its way.
TOKENS_PER_SECOND = 160

# Every token takes reading all weights, which the pieces of a batch share; but a batch takes as long as its slowest.
SAMPLES_AT_A_TIME = 8


def play(model, tokenizer: MusicTxTokenizer, samples: int, seconds: float, seed: int, top_p: float) -> list[Score]:
    """Let a model play from nothing, within the rules that keep music well-formed.

    Args:
        model: A causal language model of the tokenizer's ids.
        tokenizer: The tokenizer.
        samples: How many pieces.
        seconds: Length of each, unless the model ends it before.
        seed: The same seed, the same pieces.
        top_p: Share of the probability that is sampled from.

    Returns:
        The pieces.
    """
    set_seed(seed)
    scores = []
    while len(scores) < samples:
        shape = (min(SAMPLES_AT_A_TIME, samples - len(scores)), 1)
        start = torch.full(shape, tokenizer.bos_token_id, device=model.device)
        ids = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_p=top_p,
            top_k=0,
            max_new_tokens=int(seconds * TOKENS_PER_SECOND),
            logits_processor=piano_logits_processors(tokenizer),
            stopping_criteria=[MaxSeconds(tokenizer, seconds, prompt_length=1)],
        )
        scores += [tokenizer.to_score(row) for row in ids]
    return scores


def beginnings(pieces: Iterable[np.ndarray], tokenizer: MusicTxTokenizer, seconds: float) -> list[Score]:
    """Cut pieces as `play` cuts its own: at the token that reaches the time, where all keys come up.

    Args:
        pieces: The ids of each piece, `[L]`.
        tokenizer: The tokenizer that wrote them.
        seconds: Length of each beginning.

    Returns:
        The beginnings.
    """
    token_seconds = tokenizer.token_seconds
    scores = []
    for ids in pieces:
        # The sum of many hundredths strays from the grid, by less than half a step.
        end = np.searchsorted(token_seconds[ids].cumsum(), seconds - 0.005) + 1
        scores.append(tokenizer.to_score(ids[:end]))
    return scores
