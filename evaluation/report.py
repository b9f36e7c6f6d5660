"""A model's numbers for its card: `python -m evaluation.report --model FOLDER --corpus data/maestro --output FILE`.

Likelihood of the validation and test splits, and statistics of music that the model makes from nothing beside those of
as many seconds from the beginnings of the validation pieces. `hub.card` reads the file.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, set_seed

from corpus.dataset import EvaluationWindows, load_corpus
from evaluation.likelihood import negative_log_likelihood
from evaluation.metrics import describe_set
from tokenization import PIANO, MaxSeconds, MusicGrammar, MusicTxTokenizer

STATISTICS = (
    "notes_per_second",
    "polyphony",
    "silence",
    "pitch_range",
    "pitch_mean",
    "pitch_class_entropy",
    "velocity_mean",
    "velocity_std",
    "note_seconds",
)

# MAESTRO needs 26 tokens for a second, its busiest half minutes twice as many.
TOKENS_PER_SECOND = 100

SAMPLES_AT_A_TIME = 32


def play(model, tokenizer: MusicTxTokenizer, samples: int, seconds: float, seed: int, top_p: float) -> list:
    """Let the model play from nothing.

    Args:
        model: A causal language model of the tokenizer's ids.
        tokenizer: The tokenizer.
        samples: How many pieces.
        seconds: Length of each.
        seed: The same seed, the same pieces.
        top_p: Share of the probability that is sampled from.

    Returns:
        The pieces as scores.
    """
    set_seed(seed)
    scores = []
    while len(scores) < samples:
        start = torch.full((min(SAMPLES_AT_A_TIME, samples - len(scores)), 1), tokenizer.bos_token_id)
        ids = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_p=top_p,
            top_k=0,
            max_new_tokens=int(seconds * TOKENS_PER_SECOND),
            logits_processor=[MusicGrammar(tokenizer, **PIANO)],
            stopping_criteria=[MaxSeconds(tokenizer, seconds, prompt_length=1)],
        )
        scores += [tokenizer.to_score(row) for row in ids]
    return scores


def beginnings(pieces, tokenizer: MusicTxTokenizer, seconds: float) -> list:
    """The first seconds of each piece of a split, as scores."""
    scores = []
    for ids in pieces["input_ids"]:
        ids = np.asarray(ids)
        scores.append(tokenizer.to_score(ids[tokenizer.token_seconds[ids].cumsum() <= seconds]))
    return scores


def main(arguments: list[str] | None = None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a saved model")
    parser.add_argument("--corpus", required=True, help="folder that corpus.prepare wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, for hub.card")
    parser.add_argument("--splits", nargs="*", default=["validation", "test"], help="splits whose likelihood is taken")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="pieces that the model plays (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    corpus = load_corpus(args.corpus)
    tokenizer = MusicTxTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    nll = {}
    for split in args.splits:
        windows = EvaluationWindows(corpus[split], args.length)
        nll[split] = round(negative_log_likelihood(model, windows, progress=True).nats_per_token, 4)
        print(f"{split}: {nll[split]} nats per token", flush=True)

    played = describe_set(play(model, tokenizer, args.samples, args.seconds, args.seed, args.top_p))
    real = describe_set(beginnings(corpus["validation"], tokenizer, args.seconds))
    statistics = {}
    for name in STATISTICS:
        row = {"model": played[name][0], "validation": real[name][0]}
        statistics[name.replace("_", " ")] = {key: round(value, 3) for key, value in row.items()}
        print(
            f"{name}: {played[name][0]:.3g} ± {played[name][1]:.2g} beside {real[name][0]:.3g} ± {real[name][1]:.2g}"
        )
    facts = {"window": args.length, "nll": nll, "statistics": statistics}
    args.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
