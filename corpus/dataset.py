"""Windows of a prepared corpus: random crops for training, gapless ones for evaluation; the only seeded randomness.

Nothing here remembers what was asked before: which example stands at an index depends on the seed and the index alone.
A training that resumes starts at the index where it stopped, and neither the number of DataLoader workers nor the
number of processes changes what any example is.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk

# What labels hold where nothing is to be predicted: the loss of every Transformers model leaves it out.
IGNORED = -100

# Fills `input_ids` beyond the end of a piece. Any id would do: no label and, by causality, no real token sees it.
PADDING = 0

# An augmented crop is cut from a slice this much longer: music 5% faster needs up to 5% fewer tokens.
SPARE = 1 / 16

# Separate the streams of random numbers that one seed opens.
ORDER, PHASE, AUGMENT = range(3)

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def load_corpus(corpus_dir: str | Path) -> DatasetDict:
    """Open what `python -m corpus.prepare` wrote: splits of pieces, memory-mapped.

    Args:
        corpus_dir: The folder given to `prepare` as `--output_dir`.

    Returns:
        The splits `train`, `validation` and `test` with the columns `name` and `input_ids` (BOS + ids + EOS).

    Raises:
        FileNotFoundError: The folder is not a prepared corpus.
    """
    corpus_dir = Path(corpus_dir)
    if not (corpus_dir / "dataset_dict.json").is_file():
        raise FileNotFoundError(f"{corpus_dir} is not a prepared corpus; make one with `python -m corpus.prepare`.")
    return load_from_disk(corpus_dir)


class Crops(torch.utils.data.Dataset):
    """Random crops of one length, without end: index `i` belongs to epoch `i // len(self)`.

    An epoch visits every window of every piece once, in an order of its own. The first window of a piece starts at its
    BOS and the last one ends at its EOS, in every epoch, so that beginnings and endings are learned; the windows
    between them tile the piece at a phase that each epoch draws anew.

    Args:
        pieces: One split of a corpus.
        length: Tokens per crop. A shorter piece is padded on the right.
        seed: With the index, determines everything.
        augment: Function of ids and a random generator that returns the ids of altered music, or `None`.

    Raises:
        ValueError: The split is empty, or holds a row of fewer than two tokens; `length` is below 2.
    """

    def __init__(self, pieces: Dataset, length: int, seed: int = 0, augment: Augmentation | None = None):
        self.rows = _Rows(pieces)
        self.length, self.seed, self.augment = _checked(length), seed, augment
        self.windows = _Windows(-(-self.rows.lengths // length))
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Windows per epoch; indexes may run past it."""
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both `[length]`."""
        if index < 0:
            raise IndexError(f"index ({index}) must not be negative: crops run on without end.")
        epoch, place = divmod(index, len(self))
        row, window = self.windows[self._shuffled(epoch)[place]]
        start = self._start(epoch, row, window)
        if self.augment is None:
            return _example(self.rows[row, start : start + self.length], self.length)

        total = self.rows.lengths[row]
        spare = int(self.length * SPARE)
        is_ending = start > 0 and start + self.length == total
        slack = slice(max(0, start - spare) if is_ending else start, start + self.length + spare)
        ids = self.augment(self.rows[row, slack], self._random(AUGMENT, index))
        # The last window keeps its EOS, also where slower music needs more tokens.
        return _example(ids[-self.length :] if is_ending else ids[: self.length], self.length)

    def _start(self, epoch: int, row: int, window: int) -> int:
        """The window's first token. A piece's windows hold more than the piece: the phase shares the excess out."""
        last = max(0, self.rows.lengths[row] - self.length)
        phase = self._random(PHASE, epoch, row).integers(-last % self.length, endpoint=True)
        return min(max(0, window * self.length - phase), last)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._random(ORDER, epoch).permutation(len(self))
        return self._order

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *stream))


class EvaluationWindows(torch.utils.data.Dataset):
    """Windows over whole pieces in order, each overlapping the one before by a single token.

    Labels shift by one inside the model, so that every token of a piece but its first is predicted exactly once.

    Args:
        pieces: One split of a corpus.
        length: Tokens per window. The last window of a piece is padded on the right.

    Raises:
        ValueError: The split is empty, or holds a row of fewer than two tokens; `length` is below 2.
    """

    def __init__(self, pieces: Dataset, length: int):
        self.rows = _Rows(pieces)
        self.length = _checked(length)
        self.windows = _Windows(-(-(self.rows.lengths - 1) // (length - 1)))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both `[length]`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index ({index}) must be at least 0 and less than the number of windows ({len(self)}).")
        row, window = self.windows[index]
        start = window * (self.length - 1)
        return _example(self.rows[row, start : start + self.length], self.length)


class PaperAugmentation:
    """The paper's augmentation: up to three semitones up or down, up to 5% slower or faster.

    A crop that would leave the keyboard keeps its pitch.

    Args:
        tokenizer: A `MusicTxTokenizer`.

    Source:
        Huang et al. 2018, arXiv 1809.04281, section 4.2.
    """

    semitones = (-3, -2, -1, 0, 1, 2, 3)
    stretches = (0.95, 0.975, 1.0, 1.025, 1.05)

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the ids of the same music, moved and stretched."""
        semitones, stretch = int(random.choice(self.semitones)), float(random.choice(self.stretches))
        try:
            return self.tokenizer.augment(ids, semitones, stretch)
        except ValueError:
            return self.tokenizer.augment(ids, 0, stretch)


class _Rows:
    """Slices of the memory-mapped `input_ids`: a slice touches the pages it stands on and nothing else."""

    def __init__(self, pieces: Dataset):
        if len(pieces) == 0:
            raise ValueError("The split is empty; prepare a corpus with at least one piece in it.")
        self.pieces = pieces
        chunks = pieces.with_format("arrow")[:]["input_ids"].chunks
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self.chunks = [chunk.values.to_numpy() for chunk in chunks]
        self.chunk_of_row = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
        self.starts = np.concatenate([bounds[:-1] for bounds in offsets]).astype(np.int64)
        self.lengths = np.concatenate([np.diff(bounds) for bounds in offsets]).astype(np.int64)
        shortest = int(self.lengths.argmin())
        if self.lengths[shortest] < 2:
            raise ValueError(
                f"Row {shortest} of the split holds {self.lengths[shortest]} tokens; a piece needs at least 2, "
                "its BOS and one more. Prepare the corpus again."
            )

    def __getitem__(self, place: tuple[int, slice]) -> np.ndarray:
        row, tokens = place
        start, stop, _ = tokens.indices(self.lengths[row])
        first = self.starts[row]
        return self.chunks[self.chunk_of_row[row]][first + start : first + stop]

    def __reduce__(self):
        # A worker that is spawned opens the files again; the views would travel as copies of the whole corpus.
        return _Rows, (self.pieces,)


class _Windows:
    """Numbers the windows of all pieces in a row, and finds the piece of each."""

    def __init__(self, windows_per_row: np.ndarray):
        self.ends = np.cumsum(windows_per_row)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        row = int(np.searchsorted(self.ends, index, side="right"))
        return row, int(index - (self.ends[row - 1] if row else 0))


def _checked(length: int) -> int:
    if length < 2:
        raise ValueError(f"length ({length}) must be at least 2: one token to read and one to predict.")
    return length


def _example(ids: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """Pad on the right. `ids`: at most `length` of them."""
    input_ids = torch.full((length,), PADDING)
    labels = torch.full((length,), IGNORED)
    input_ids[: len(ids)] = labels[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
    return {"input_ids": input_ids, "labels": labels}
