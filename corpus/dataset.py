"""Windows of a prepared corpus: random crops for training, gapless ones for evaluation; the only seeded randomness.

The example at an index depends on the seed and the index alone, and not on what was read before. A training that
resumes starts at the index where it stopped, and neither the number of DataLoader workers nor that of processes
changes any example. This holds for a memory-mapped corpus and for a streamed one; a resumed stream downloads again the
one shard in which it stopped.
"""

import json
import math
import re
from collections.abc import Callable
from os.path import samestat
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from corpus.shards import StreamedPieces
from tokenization import MusicTxTokenizer
from tokenization.controls import find_composer
from tokenization.infilling import infill_sequence
from tokenization.performance import STEPS_PER_SECOND

# What labels hold where nothing is to be predicted: the loss of every Transformers model leaves it out.
IGNORED = -100

# Fills `input_ids` beyond the end of a piece. Any id would do: no label and, by causality, no real token sees it.
PADDING = 0

# An augmented crop is cut from a slice this much longer: music 5% faster needs up to 5% fewer tokens.
SPARE = 1 / 16

# Separate the streams of random numbers that one seed opens.
ORDER, PHASE, AUGMENT, WEIGHT, SHARDS = range(5)

Transform = Callable[[np.ndarray, np.random.Generator, str], np.ndarray]

# Of a crop with controls, how probable it is that an attribute is stated at all, and that every segment states it;
# else each does with a probability that is uniform itself. So any subset can be given in generation.
STATED, STATED_EVERYWHERE = 0.75, 0.7

# Gaps are of these lengths in seconds, their logarithm uniform, and at most half of a crop. So many begin with it.
GAP_SECONDS, GAP_AT_BEGINNING = (0.5, 8.0), 0.05


def load_corpus(corpus: str | Path) -> DatasetDict | dict[str, StreamedPieces]:
    """Open what `python -m corpus.prepare` wrote.

    Args:
        corpus: The folder given to `prepare` as `--output_dir`, whose pieces are memory-mapped. Or where it was
            published to, and then they are streamed: a data set on the Hub as `user/name` or `user/name@revision`, or
            any folder that fsspec knows, as `s3://bucket/folder`.

    Returns:
        The splits `train`, `validation` and `test` of pieces (BOS + ids + EOS).

    Raises:
        FileNotFoundError: There is no prepared corpus.
    """
    root = corpus_root(corpus)
    if "://" in root:
        try:
            return {split: StreamedPieces(f"{root}/{split}") for split in ("train", "validation", "test")}
        except OSError as error:
            raise FileNotFoundError(f"{root} is not a prepared corpus: {error}.") from None
    return load_from_disk(root)


def corpus_root(corpus: str | Path) -> str:
    """Find a corpus.

    Args:
        corpus: As for `load_corpus`.

    Returns:
        A folder on this machine, or an URL. A data set on the Hub is held to the commit that it is at now, for a
        training reads its index once and its pieces later.

    Raises:
        FileNotFoundError: There is no prepared corpus on this machine, and none on the Hub.
    """
    missing = f"{corpus} is not a prepared corpus; make one with `python -m corpus.prepare`"
    if Path(corpus, "dataset_dict.json").is_file() or "://" in str(corpus):
        return str(corpus)
    name = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", str(corpus))
    if not name or Path(corpus).exists():
        raise FileNotFoundError(f"{missing}.")
    try:
        commit = HfApi().dataset_info(name[1], revision=name[2]).sha
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"{missing}. Nor is it on the Hub: {reason}") from None
    return f"hf://datasets/{name[1]}@{commit}"


def load_report(corpus: str | Path) -> dict:
    """Read the report of a corpus, with its fingerprint; `corpus` as for `load_corpus`."""
    with fsspec.open(f"{corpus_root(corpus)}/report.json", encoding="utf-8", mode="r") as file:
        return json.load(file)


def load_tokenizer(corpus: str | Path) -> MusicTxTokenizer:
    """Load the tokenizer that a corpus was prepared with; `corpus` as for `load_corpus`."""
    filesystem, root = fsspec.url_to_fs(corpus_root(corpus))
    with TemporaryDirectory() as folder:
        filesystem.get(f"{root}/tokenizer/", folder, recursive=True)
        return MusicTxTokenizer.from_pretrained(folder)


class Crops(torch.utils.data.Dataset):
    """Random crops of one length, without end: index `i` belongs to epoch `i // len(self)`.

    An epoch visits every window of every piece once, in an order of its own. The first window of a piece starts at its
    BOS and the last one ends at its EOS, in every epoch, so that beginnings and endings are learned; the windows
    between them tile the piece at a phase that each epoch draws anew. Pieces of another weight than 1 are visited so
    often on average, whichever the epoch: with 0.5, one half of their windows in one epoch and the other in the next.

    Streamed pieces come shard after shard, the windows of a shard shuffled among themselves. Processes that take
    batches in turn then read different shards, and only where these do not divide evenly each other's.

    Args:
        pieces: One split of a corpus.
        length: Tokens per crop. A shorter piece is padded on the right.
        seed: With the index, determines everything.
        transform: Function of ids, a random generator and the name of the composer that returns the ids of altered
            music, such as a `CropTransform`, or `None`.
        num_processes: For streamed pieces, how many processes take batches of crops in turn.
        batch_size: For streamed pieces, crops in a batch of one process.

    Raises:
        ValueError: The split is empty, or holds a row of fewer than two tokens; `length` is below 2.
    """

    def __init__(
        self,
        pieces: Dataset | StreamedPieces,
        length: int,
        seed: int = 0,
        transform: Transform | None = None,
        num_processes: int = 1,
        batch_size: int = 1,
    ):
        self.rows = _rows(pieces)
        self.length, self.seed, self.transform = _checked(length), seed, transform
        self.num_processes, self.batch_size = num_processes, batch_size
        self.windows = _Windows(-(-self.rows.lengths // length))
        # The windows by the weight of their pieces, each group in an order that the epochs walk through in turn.
        weights = np.repeat(self.rows.weights, self.windows.per_row)
        self._groups = [
            (divmod(float(weight), 1), self._random(WEIGHT, number).permutation(np.flatnonzero(weights == weight)))
            for number, weight in enumerate(np.unique(weights))
        ]
        self._length = sum(len(visits) for visits in self._visits(0))
        if self._length == 0:
            raise ValueError("The weights leave no window to an epoch; prepare the corpus with larger ones.")
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Windows per epoch; indexes may run past it."""
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both `[length]`."""
        if index < 0:
            raise IndexError(f"index ({index}) must not be negative: crops run on without end.")
        epoch, place = divmod(index, len(self))
        row, window = self.windows[self._shuffled(epoch)[place]]
        start = self._start(epoch, row, window)
        if self.transform is None:
            return _example(self.rows[row, start : start + self.length], self.length)

        total = self.rows.lengths[row]
        spare = int(self.length * SPARE)
        is_ending = start > 0 and start + self.length == total
        slack = slice(max(0, start - spare) if is_ending else start, start + self.length + spare)
        ids = self.transform(self.rows[row, slack], self._random(AUGMENT, index), self.rows.composers[row])
        # The last window keeps its EOS, also where slower music needs more tokens.
        return _example(ids[-self.length :] if is_ending else ids[: self.length], self.length)

    def _start(self, epoch: int, row: int, window: int) -> int:
        """Return the position of a window's first token; the windows overlap at a phase that is random by epoch."""
        last = max(0, self.rows.lengths[row] - self.length)
        phase = self._random(PHASE, epoch, row).integers(-last % self.length, endpoint=True)
        return min(max(0, window * self.length - phase), last)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            order = self._random(ORDER, epoch).permutation(np.sort(np.concatenate(self._visits(epoch))))
            if isinstance(self.rows, StreamedPieces):
                order = self._by_shard(order, epoch)
            self._epoch, self._order = epoch, order
        return self._order

    def _visits(self, epoch: int) -> list[np.ndarray]:
        """The windows of an epoch, as often as their weights say, the same number in every epoch."""
        visits = []
        for (times, share), windows in self._groups:
            some = round(share * len(windows))
            visits += [windows] * int(times)
            visits.append(windows[np.arange(epoch * some, (epoch + 1) * some) % len(windows)])
        return visits

    def _by_shard(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """Group windows by shard, and distribute the shards to the processes.

        Args:
            order: Windows, shuffled, `[N]`.
            epoch: Their epoch.

        Returns:
            The same windows, `[N]`: at the places of each process, windows of its own shards as long as it has any.
        """
        shard = self.rows.shard_of_row[np.searchsorted(self.windows.ends, order, side="right")]
        turn = np.argsort(self._random(SHARDS, epoch).permutation(shard.max() + 1))[shard]  # [N]
        by_turn = np.argsort(turn, kind="stable")
        process_of_window = turn[by_turn] % self.num_processes
        index = epoch * len(order) + np.arange(len(order))
        process_of_place = index // self.batch_size % self.num_processes
        places, windows = [], []
        left_places, left_windows = [], []
        for process in range(self.num_processes):
            at, own = np.flatnonzero(process_of_place == process), by_turn[process_of_window == process]
            both = min(len(at), len(own))
            places.append(at[:both])
            windows.append(own[:both])
            left_places.append(at[both:])
            left_windows.append(own[both:])
        dealt = np.empty_like(order)
        dealt[np.concatenate(places + left_places)] = order[np.concatenate(windows + left_windows)]
        return dealt

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

    def __init__(self, pieces: Dataset | StreamedPieces, length: int):
        self.rows = _rows(pieces)
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


class CropTransform:
    """What a training alters in crops: the paper's augmentation, controls, and gaps to fill.

    Args:
        tokenizer: A `MusicTxTokenizer`.
        length: Tokens per crop.
        augment: Whether to move pitches by up to three semitones, and to play up to 5% slower or faster. A crop that
            would leave the keyboard keeps its pitch.
        control_fraction: Share of the crops that state controls.
        infill_fraction: Share of the crops that are written as examples of infilling.

    Raises:
        ValueError: The tokenizer has no tokens for controls and infilling.

    Source:
        Huang et al. 2018, arXiv 1809.04281, section 4.2, for the augmentation.
    """

    semitones = (-3, -2, -1, 0, 1, 2, 3)
    stretches = (0.95, 0.975, 1.0, 1.025, 1.05)

    def __init__(
        self,
        tokenizer: MusicTxTokenizer,
        length: int,
        augment: bool = True,
        control_fraction: float = 0.0,
        infill_fraction: float = 0.0,
    ):
        if (control_fraction or infill_fraction) and tokenizer.infill_ids is None:
            raise ValueError(
                f"control_fraction ({control_fraction}) and infill_fraction ({infill_fraction}) need a corpus whose "
                "tokenizer has tokens for them; prepare it with --tokenizer PerformanceWithControls."
            )
        self.tokenizer, self.length, self.augment = tokenizer, length, augment
        self.control_fraction, self.infill_fraction = control_fraction, infill_fraction

    def __call__(self, ids: np.ndarray, random: np.random.Generator, composer: str) -> np.ndarray:
        """Return the ids of the altered crop; those of an infilled one are at most `length`."""
        if self.augment:
            ids = self._augmented(ids, random)
        if random.random() < self.control_fraction:
            ids = self._with_controls(ids, random, composer)
        if random.random() < self.infill_fraction:
            ids = self._with_gap(ids, random)
        return ids

    def _augmented(self, ids, random):
        semitones, stretch = int(random.choice(self.semitones)), float(random.choice(self.stretches))
        try:
            return self.tokenizer.augment(ids, semitones, stretch)
        except ValueError:
            return self.tokenizer.augment(ids, 0, stretch)

    def _with_controls(self, ids, random, composer):
        def is_stated(shape: tuple[int, int]) -> np.ndarray:
            segments, attributes = shape
            everywhere = random.random(attributes) < STATED_EVERYWHERE
            share = np.where(everywhere, 1.0, random.random(attributes))
            share = np.where(random.random(attributes) < STATED, share, 0.0)
            return random.random((segments, attributes)) < share

        encoding = self.tokenizer.miditok
        return encoding.insert_controls(ids, find_composer(composer, encoding.attributes[0].values), is_stated)

    def _with_gap(self, ids, random):
        steps = round(float(self.tokenizer.token_seconds[ids[: self.length]].sum()) * STEPS_PER_SECOND)
        gap = round(math.exp(random.uniform(*map(math.log, GAP_SECONDS))) * STEPS_PER_SECOND)
        gap = min(gap, steps // 2)
        start = int(random.integers(max(steps - gap, 1))) * (random.random() >= GAP_AT_BEGINNING)
        infilled = infill_sequence(ids, self.tokenizer.miditok, start, start + gap, self.length)
        return ids if infilled is None else infilled


def _rows(pieces: Dataset | StreamedPieces) -> "_Rows | StreamedPieces":
    """Return pieces as rows to slice, `rows[row, start:stop]`, with their `lengths`, `weights` and `composers`."""
    if len(pieces) == 0:
        name = pieces.url.rpartition("/")[2] if isinstance(pieces, StreamedPieces) else pieces.split
        raise ValueError(
            f"The {name or 'given'} split is empty; prepare the corpus again: a folder of few files with a larger "
            "--validation_share, or with --metadata that has a column split."
        )
    rows = pieces if isinstance(pieces, StreamedPieces) else _Rows(pieces)
    shortest = int(rows.lengths.argmin())
    if rows.lengths[shortest] < 2:
        raise ValueError(
            f"Row {shortest} of the split holds {rows.lengths[shortest]} tokens; a piece needs at least 2, "
            "its BOS and one more. Prepare the corpus again."
        )
    return rows


class _Rows:
    """Slices of the memory-mapped `input_ids`: a slice reads the pages that it is on and nothing else.

    Raises:
        OSError: On a slice, if a file has become shorter. To read beyond its end would end the process by a signal.
    """

    def __init__(self, pieces: Dataset):
        self.pieces = pieces
        self.files = [(path, path.stat()) for path in (Path(file["filename"]) for file in pieces.cache_files)]
        table = pieces.with_format("arrow")[:]
        chunks = table["input_ids"].chunks
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self.chunks = [chunk.values.to_numpy() for chunk in chunks]
        self.chunk_of_row = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
        self.starts = np.concatenate([bounds[:-1] for bounds in offsets]).astype(np.int64)
        self.lengths = np.concatenate([np.diff(bounds) for bounds in offsets]).astype(np.int64)
        # Corpora that `prepare` did not write may have no weights.
        self.weights = table["weight"].to_numpy() if "weight" in table.column_names else np.ones(len(pieces))
        self.composers = table["composer"].to_pylist() if "composer" in table.column_names else [""] * len(pieces)

    def __getitem__(self, place: tuple[int, slice]) -> np.ndarray:
        row, tokens = place
        start, stop, _ = tokens.indices(self.lengths[row])
        first = self.starts[row]
        self._check_files()
        return self.chunks[self.chunk_of_row[row]][first + start : first + stop]

    def _check_files(self) -> None:
        for path, before in self.files:
            try:
                now = path.stat()
            except FileNotFoundError:  # what was mapped stays until it is closed
                continue
            # Another file of this name is not the one that was mapped.
            if samestat(now, before) and now.st_size < before.st_size:
                raise OSError(f"{path} has become shorter while it is read; prepare the corpus again")

    def __reduce__(self):
        # A spawned worker opens the files itself; pickled, the views would be copies of the whole corpus.
        return _Rows, (self.pieces,)


class _Windows:
    """Numbers the windows of all pieces in a row, and finds the piece of each."""

    def __init__(self, windows_per_row: np.ndarray):
        self.per_row = windows_per_row
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
