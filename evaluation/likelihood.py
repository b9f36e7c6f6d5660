"""Negative log-likelihood of real music under a model: per token, per note and per second of music.

`python -m evaluation.likelihood --model FOLDER --corpus data/maestro --split validation` scores a saved model on a
whole split; with `accelerate launch -m evaluation.likelihood ...` several processes share the work and give the same
numbers.

Nats per token compare models with the same tokenizer. Nats per note and per second compare models with any tokenizer.

Shape letters: B batch, L window length.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from corpus.commands import run_command
from evaluation import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.likelihood(__doc__).parse_args()

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from corpus.dataset import IGNORED, EvaluationWindows, load_corpus, load_tokenizer
from evaluation.loading import load_model
from tokenization import MusicTxTokenizer


class Likelihood(NamedTuple):
    """The total negative log-likelihood of some windows in nats, and how many tokens were predicted."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """The mean."""
        return self.nats / self.tokens


class Scores(NamedTuple):
    """Sums over some windows by the position of a token in its window; the sums of parts add up.

    Args:
        nats: Negative log-likelihood of the tokens at each position, `[L]`.
        hits: How many of them had the highest probability of all tokens, `[L]`.
        tokens: How many there were, `[L]`.
    """

    nats: np.ndarray
    hits: np.ndarray
    tokens: np.ndarray


class Amount(NamedTuple):
    """How much music there is: notes, and seconds from each piece's first onset to its end."""

    notes: int
    seconds: float


class ContextWindows(Dataset):
    """Windows over whole pieces in order, in which every token of a piece but its first is predicted exactly once.

    With a context of 1 the windows are those of `EvaluationWindows`, as in the paper: a token at the beginning of a
    window is predicted from almost nothing. With a longer context, consecutive windows overlap by that many tokens,
    which are not predicted again.

    Args:
        pieces: One split of a corpus.
        length: Tokens per window. The last window of a piece is padded on the right.
        context: Tokens at the beginning of each window but the first that are not predicted.

    Raises:
        ValueError: The split is empty, or the context leaves nothing to predict.
    """

    def __init__(self, pieces, length: int, context: int = 1):
        self.rows = EvaluationWindows(pieces, length).rows
        if not 1 <= context < length:
            raise ValueError(f"context ({context}) must be from 1 to {length - 1}, one less than the length.")
        self.length, self.context = length, context
        stride = length - context
        counts = 1 + np.maximum(-(-(np.asarray(self.rows.lengths) - length) // stride), 0)
        self.row = np.repeat(np.arange(len(counts)), counts)
        self.start = stride * (np.arange(len(self.row)) - np.repeat(np.cumsum(counts) - counts, counts))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both `[L]`."""
        start = int(self.start[index])
        ids = torch.from_numpy(self.rows[int(self.row[index]), start : start + self.length].astype(np.int64))
        labels = ids.clone()
        labels[: self.context if start else 0] = IGNORED
        missing = (0, self.length - len(ids))
        return {
            "input_ids": torch.nn.functional.pad(ids, missing),
            "labels": torch.nn.functional.pad(labels, missing, value=IGNORED),
        }


@torch.no_grad()
def score(
    model: torch.nn.Module, windows: Dataset, batch_size: int = 4, autocast=nullcontext, progress: bool = False
) -> Scores:
    """Score windows of a corpus; order and batch size change the numbers by rounding only.

    Args:
        model: A causal language model; its training mode is restored.
        windows: Examples with `input_ids` and `labels`, both `[L]`.
        batch_size: Windows per forward pass; on one core 4 took 5 to 20 percent less time than 8.
        autocast: Makes a context for the forward pass, for lower precision.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Returns:
        The scores of these windows alone: add them up over processes, then divide.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    totals = torch.zeros(3, 1, dtype=torch.float64)
    # With a generator of its own, the loader does not change the global random state of a training.
    loader = DataLoader(windows, batch_size, generator=torch.Generator())
    for batch in tqdm(loader, disable=None if progress else True, unit="batch", leave=False):
        labels = batch["labels"][:, 1:].to(device)  # [B, L - 1]
        with autocast():
            logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        # Double precision for sums over millions of tokens; unlabelled tokens have a loss of zero.
        parts = (nats.view_as(labels), logits.argmax(-1) == labels, labels >= 0)
        totals = totals + torch.stack([part.double().sum(0) for part in parts]).cpu()  # [3, L - 1]
    model.train(was_training)
    # The first token of a window is never predicted.
    return Scores(*torch.nn.functional.pad(totals, (1, 0)).numpy())


@torch.no_grad()
def token_nats(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Score one sequence.

    Args:
        model: A causal language model in evaluation mode.
        ids: The sequence, `[L]`.

    Returns:
        The negative log-likelihood of each token but the first, `[L - 1]`.
    """
    inputs = torch.from_numpy(ids.astype(np.int64))[None].to(next(model.parameters()).device)
    logits = model(input_ids=inputs, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, inputs[0, 1:], reduction="none").cpu().numpy()


def negative_log_likelihood(
    model: torch.nn.Module, windows: Dataset, batch_size: int = 4, autocast=nullcontext, progress: bool = False
) -> Likelihood:
    """Score windows of a corpus and add up; arguments as for `score`.

    Returns:
        Nats in total and tokens predicted, of these windows alone: add both up over processes, then divide.
    """
    scores = score(model, windows, batch_size, autocast, progress)
    return Likelihood(float(scores.nats.sum()), int(scores.tokens.sum()))


def amount_of_music(rows: Sequence, tokenizer: MusicTxTokenizer) -> Amount:
    """Count the notes and seconds of pieces.

    Args:
        rows: The ids of each piece, `[N]`.
        tokenizer: Their tokenizer.

    Returns:
        The amount, all pieces together.
    """
    scores = [tokenizer.to_score(ids) for ids in rows]
    return Amount(sum(score.note_num() for score in scores), sum(score.to("second").end() for score in scores))


def summarize(scores: Scores, amount: Amount) -> dict:
    """Turn sums into the reported numbers.

    Args:
        scores: The scores of a whole split.
        amount: Its notes and seconds.

    Returns:
        `nats_per_token`, `nats_per_note`, `nats_per_second`; `accuracy`, the top-1 accuracy; the totals; and `curve`,
        the nats per token at each position of the window, None where nothing is predicted.
    """
    nats, tokens = float(scores.nats.sum()), int(scores.tokens.sum())
    places = zip(scores.nats.tolist(), scores.tokens.tolist(), strict=True)
    return {
        "nats_per_token": nats / tokens,
        "nats_per_note": nats / amount.notes,
        "nats_per_second": nats / amount.seconds,
        "accuracy": float(scores.hits.sum()) / tokens,
        "tokens": tokens,
        "notes": amount.notes,
        "seconds": amount.seconds,
        "curve": [total / count if count else None for total, count in places],
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.likelihood(__doc__)
    args = parser.parse_args(argv)
    stopped = "stopped before all windows were scored; nothing was written"
    return run_command(parser.prog, lambda: _run(args), stopped)


def _run(args: argparse.Namespace) -> None:
    """Score the split, shared by all processes, and print the numbers."""
    # Given explicitly: otherwise several processes without an accelerator would not form a group.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    windows = ContextWindows(load_corpus(args.corpus)[args.split], args.length, args.context)
    tokenizer = load_tokenizer(args.corpus)
    model = load_model(args.model, args.trust_remote_code).to(accelerator.device)
    share = Subset(windows, range(accelerator.process_index, len(windows), accelerator.num_processes))
    scores = torch.zeros(3, args.length, dtype=torch.float64, device=accelerator.device)
    if len(share):
        part = score(model, share, args.batch_size, progress=accelerator.is_main_process)
        scores += torch.from_numpy(np.stack(part)).to(scores.device)
    scores = Scores(*accelerator.reduce(scores).cpu().numpy())
    if accelerator.is_main_process:
        rows = (windows.rows[row, :] for row in range(len(windows.rows.lengths)))
        result = summarize(scores, amount_of_music(rows, tokenizer))
        print(
            f"{args.split}: {result['nats_per_token']:.4f} nats per token, {result['nats_per_note']:.4f} per note, "
            f"{result['nats_per_second']:.3f} per second of music; {result['accuracy']:.1%} top-1 accuracy\n"
            f"{result['tokens']:,} tokens, {result['notes']:,} notes, {result['seconds'] / 3600:.2f} hours, "
            f"in windows of {args.length} that share {args.context}"
        )
        if args.output:
            settings = {name: getattr(args, name) for name in ("model", "corpus", "split", "length", "context")}
            args.output.write_text(json.dumps(settings | result, indent=2) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
