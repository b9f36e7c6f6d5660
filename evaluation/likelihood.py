"""How well a model predicts real music: negative log-likelihood in nats per token.

`python -m evaluation.likelihood --model FOLDER --corpus data/maestro --split validation` prints it for a saved model.
"""

import argparse
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from corpus.dataset import EvaluationWindows, load_corpus


class Likelihood(NamedTuple):
    """What a model made of some windows: the total in nats, and how many tokens were predicted."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """The mean."""
        return self.nats / self.tokens


@torch.no_grad()
def negative_log_likelihood(
    model: torch.nn.Module, windows: Dataset, batch_size: int = 8, autocast=nullcontext, progress: bool = False
) -> Likelihood:
    """Score windows of a corpus; the same windows give the same number in any order and batch, but for rounding.

    Args:
        model: A causal language model; it is left in the mode it came in.
        windows: Examples with `input_ids` and `labels`, both `[length]`, as `EvaluationWindows` gives them.
        batch_size: Windows at a time.
        autocast: Makes a context for the forward pass, for lower precision.
        progress: Whether to show a progress bar.

    Returns:
        Nats in total and tokens predicted, of these windows alone: add both up over processes, then divide.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    # With a generator of its own, the loader leaves the global random numbers of a training alone.
    loader = DataLoader(windows, batch_size, generator=torch.Generator())
    for batch in tqdm(loader, disable=not progress, unit="batch", leave=False):
        labels = batch["labels"][:, 1:].to(device)  # [B, L - 1]
        with autocast():
            logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        # The sum over millions of tokens is taken in double precision; unlabelled tokens have a loss of zero.
        nats += losses.double().sum().item()
        tokens += (labels >= 0).sum().item()
    model.train(was_training)
    return Likelihood(nats, tokens)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a saved model")
    parser.add_argument("--corpus", required=True, help="folder that corpus.prepare wrote")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    windows = EvaluationWindows(load_corpus(args.corpus)[args.split], args.length)
    result = negative_log_likelihood(model, windows, args.batch_size, progress=True)
    print(f"{args.split}: {result.nats_per_token:.4f} nats per token over {result.tokens:,} tokens")


if __name__ == "__main__":
    main()
