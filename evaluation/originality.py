"""Search pieces for copies of a training set: the most similar passage, compared with what held-out music reaches.

    python -m evaluation.originality build --corpus data/maestro --index data/maestro_index
    python -m evaluation.originality check samples/*.mid --index data/maestro_index --output_dir passages

Pieces are compared by the steps from note to note: the interval, and whether the gap in time is none (a chord), short
or long. So copies are found in any key, at slightly other tempos, and with some notes changed: short runs of equal
steps (seeds) locate a passage, and a local alignment of the notes around them gives its score.

Some similarity is normal: a passage counts as a copy if its score exceeds those of all excerpts of held-out pieces.

Shape letters: N notes, S seeds, C candidates, W diagonals of a band.

Source: seeds and local alignment as in sequence search: Smith & Waterman 1981; Altschul et al. 1990 (BLAST).
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from corpus.commands import run_command
from evaluation import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.originality(__doc__).parse_args()

import numpy as np
from datasets import Dataset
from numpy.lib.stride_tricks import sliding_window_view
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from symusic import Score

from corpus.dataset import load_corpus, load_tokenizer
from corpus.plain_text import print_line
from evaluation.flags import EXCERPT_SECONDS
from evaluation.metrics import NoteArrays, midi_to_arrays, score_to_arrays
from tokenization import MusicTxTokenizer
from tokenization.performance import piano_score

# Onsets closer than this are one chord, whose notes are in the order of their pitches.
CHORD_SECONDS = 0.045

# A step is an interval of at most five octaves and one of three gaps: none, short, long. The bounds lie between the
# times of a grid of 10 ms, so that rounding errors do not matter.
LARGEST_INTERVAL = 63
GAP_BOUNDS = (0.005, 0.255)
STEPS = (2 * LARGEST_INTERVAL + 1) * (len(GAP_BOUNDS) + 1)

# Steps in a row that make a seed: as many as an integer of 64 bits holds. With one note in ten changed, four seeds in
# ten remain.
SEED_STEPS = 7

# A seed with more hits than this in the training set does not locate a passage.
MAX_SEED_HITS = 300

# Nor do figurations: trills, tremolos and repeated chords, in which FIGURE_NOTES notes in a row strike at most
# FIGURE_KEYS keys; scales and arpeggios, in which three of four steps repeat those of up to FIGURE_PERIOD notes
# before.
FIGURE_NOTES, FIGURE_KEYS, FIGURE_PERIOD = 12, 4, 8

# The width of a band of diagonals, which bounds the notes that only one of two passages has, and the bands to align.
BAND, CANDIDATES = 64, 8

# The score of an equal note, of a different one, and of a missing one.
SAME, OTHER, MISSING = 1, -1, -2

# The excerpts of held-out pieces for the baseline, each as long as the pieces to check.
EXCERPTS = 512

ARRAYS, FACTS = "index.safetensors", "index.json"


class Line(NamedTuple):
    """Notes in one line, chord by chord and in a chord by pitch, `[N]` each.

    Args:
        onset: When the chord begins, in seconds.
        start: When the note begins, in seconds.
        end: When it ends, in seconds.
        pitch: Key, 0..127.
        velocity: Velocity, 1..127.
    """

    onset: np.ndarray
    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray


class Passage(NamedTuple):
    """A passage of a piece and the similar one of a training piece.

    Args:
        alignment_score: Equal notes less different and missing ones, without figurations; 0 if nothing was found.
        start_seconds: Onset of its first note in the piece.
        end_seconds: Onset of its last note in the piece.
        name: The training piece.
        training_start_seconds: Onset of its first note in the training piece.
        training_end_seconds: Onset of its last note in the training piece.
        semitones: The transposition from the piece to the training piece.
    """

    alignment_score: int = 0
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    name: str = ""
    training_start_seconds: float = 0.0
    training_end_seconds: float = 0.0
    semitones: int = 0


class Originality(NamedTuple):
    """The result of a search.

    Args:
        passage: The passage of the highest alignment score.
        longest_run: Notes of the longest passage with every step equal; frequent seeds and figurations end it.
        overlap: Share of the piece's seeds that occur anywhere in the training set, 0..1.
        is_copy: Whether the score exceeds all baseline scores.
    """

    passage: Passage
    longest_run: int
    overlap: float
    is_copy: bool


def read_line(music: "Score | NoteArrays") -> Line:
    """Return the notes of a piece, without a score's drums, as one line."""
    notes = music if isinstance(music, NoteArrays) else score_to_arrays(music)
    chord = np.cumsum(np.diff(notes.start, prepend=0) >= CHORD_SECONDS)
    order = np.lexsort((notes.pitch, chord))
    # A chord begins with the first of its notes, and they are still in the order of their starts.
    onset = notes.start[np.searchsorted(chord, chord)]
    return Line(
        *(field[order].astype(np.float32) for field in (onset, notes.start, notes.end)),
        *(field[order].astype(np.uint8) for field in (notes.pitch, notes.velocity)),
    )


def seeds_of(line: Line) -> np.ndarray:
    """Encode every SEED_STEPS steps in a row as one number, without collisions.

    Args:
        line: The notes.

    Returns:
        A number for each note that SEED_STEPS steps follow, `[N - SEED_STEPS]`.
    """
    steps = _steps(line)
    seeds = np.zeros(max(len(steps) - SEED_STEPS + 1, 0), dtype=np.uint64)
    for place in range(SEED_STEPS):
        seeds = seeds * np.uint64(STEPS) + steps[place : place + len(seeds)]
    return seeds


def is_figuration(line: Line) -> np.ndarray:
    """Find the notes that continue a figuration: few keys, or the steps of a few notes before.

    Args:
        line: The notes.

    Returns:
        Bool, `[N]`.
    """
    steps, found = _steps(line), np.zeros(len(line.pitch), dtype=bool)
    if len(found) >= FIGURE_NOTES:
        keys = np.sort(sliding_window_view(line.pitch, FIGURE_NOTES), axis=1)
        found[FIGURE_NOTES - 1 :] = 1 + (np.diff(keys) != 0).sum(axis=1) <= FIGURE_KEYS
    for period in range(1, FIGURE_PERIOD + 1):
        same = np.cumsum(np.append(0, steps[period:] == steps[:-period]))
        found[period + FIGURE_NOTES :] |= same[FIGURE_NOTES:] - same[:-FIGURE_NOTES] >= 0.75 * FIGURE_NOTES
    return found


def _steps(line: Line) -> np.ndarray:
    """Number the steps from note to note, below STEPS, `[N - 1]`."""
    interval = np.clip(np.diff(line.pitch.astype(np.int64)), -LARGEST_INTERVAL, LARGEST_INTERVAL) + LARGEST_INTERVAL
    return (interval * (len(GAP_BOUNDS) + 1) + _gaps(line.onset)[1:]).astype(np.uint64)


def _gaps(onset: np.ndarray) -> np.ndarray:
    """Number the gaps before each note, 0 to 2, with 2 before the first, `[N]`."""
    return np.digitize(np.diff(onset, prepend=-np.inf), GAP_BOUNDS)


class Index:
    """The notes of a training set, and where in them each seed occurs.

    Args:
        pieces: Notes by the name of the piece.
    """

    def __init__(self, pieces: dict[str, Line]):
        self.names = list(pieces)
        self.ends = np.cumsum([len(line.pitch) for line in pieces.values()])
        self.line = Line(*map(np.concatenate, zip(*pieces.values(), strict=True)))
        seeds = [seeds_of(line) for line in pieces.values()]
        places = [
            end - len(line.pitch) + np.arange(len(of_piece))
            for end, line, of_piece in zip(self.ends, pieces.values(), seeds, strict=True)
        ]
        seeds, places = np.concatenate(seeds), np.concatenate(places).astype(np.int32)
        order = np.argsort(seeds, kind="stable")
        self.seeds, self.places = seeds[order], places[order]
        self.baseline_scores: list[int] = []

    def measure_baseline(self, excerpts: list[Line]) -> None:
        """Set the baseline: the alignment scores of music that is no copy.

        Args:
            excerpts: Performances of compositions that are not in the training set.
        """
        self.baseline_scores = sorted(self.search(line).passage.alignment_score for line in excerpts)

    def search(self, line: Line) -> Originality:
        """Search the training set for passages of a piece.

        Args:
            line: The notes of the piece.

        Returns:
            The result.
        """
        seeds = seeds_of(line)
        first = np.searchsorted(self.seeds, seeds)
        count = np.searchsorted(self.seeds, seeds, side="right") - first
        overlap = float((count > 0).mean()) if len(count) else 0.0
        count[(count > MAX_SEED_HITS) | is_figuration(line)[SEED_STEPS:]] = 0
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        own = np.repeat(np.arange(len(seeds)), count)
        theirs = self.places[np.repeat(first, count) + within].astype(np.int64)
        if len(own) == 0:
            return Originality(Passage(), 0, overlap, is_copy=False)

        order = np.lexsort((own, theirs - own))
        is_next = (np.diff((theirs - own)[order]) == 0) & (np.diff(own[order]) == 1)
        run = np.diff(np.flatnonzero(np.concatenate([[True], ~is_next, [True]]))).max()
        passage = self._best_passage(line, own, theirs)
        return Originality(
            passage, int(run) + SEED_STEPS, overlap, passage.alignment_score > max(self.baseline_scores, default=0)
        )

    def _best_passage(self, line: Line, own: np.ndarray, theirs: np.ndarray) -> Passage:
        """Align a piece with the training set in the bands of diagonals that hold the most seeds.

        Args:
            line: The notes of the piece.
            own: Positions of the seeds in it, `[S]`.
            theirs: Their positions in the training set, `[S]`.

        Returns:
            The passage of the highest alignment score.
        """
        # Bands overlap by half, so that no passage lies on a border.
        band = (theirs - own) // (BAND // 2)
        bands, counts = np.unique(np.concatenate([band, band - 1]), return_counts=True)
        chosen = bands[np.argsort(-counts, kind="stable")[:CANDIDATES]]
        piece, shift = np.empty((2, len(chosen), 1), dtype=np.int64)  # [C, 1]
        for candidate, number in enumerate(chosen):
            inside = (band == number) | (band == number + 1)
            at = theirs[inside]
            piece[candidate] = np.bincount(np.searchsorted(self.ends, at, side="right")).argmax()
            # The most frequent transposition among the seeds.
            interval = self.line.pitch[at].astype(np.int64) - line.pitch[own[inside]]
            shift[candidate] = np.bincount(interval + 128).argmax() - 128

        # The training notes that note n meets in a band stand at n to n + W - 1, [C, N + W - 1].
        place = chosen[:, None] * (BAND // 2) + np.arange(len(line.pitch) + BAND - 1)
        begin, end = np.append(0, self.ends)[piece], self.ends[piece]
        is_inside = (begin <= place) & (place < end)
        place = np.clip(place, begin, end - 1)
        pitch = np.where(is_inside, self.line.pitch[place] - shift, -1)
        gap = np.digitize(np.diff(self.line.onset[place], axis=1, prepend=-np.inf), GAP_BOUNDS)
        alignment_score, first, last, first_there, last_there = _align(pitch, gap, line)
        best = alignment_score.argmax()
        there = self.line.start[place[best]]
        return Passage(
            int(alignment_score[best]),
            float(line.start[first[best]]),
            float(line.start[last[best]]),
            self.names[piece[best, 0]],
            float(there[first_there[best]]),
            float(there[last_there[best]]),
            int(shift[best, 0]),
        )

    def piece(self, name: str) -> Line:
        """Return the notes of a training piece."""
        number = self.names.index(name)
        begin = self.ends[number - 1] if number else 0
        return Line(*(field[begin : self.ends[number]] for field in self.line))

    def save(self, folder: Path) -> None:
        """Write the index to a folder, which is created if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.line._asdict() | {"seeds": self.seeds, "places": self.places}, folder / ARRAYS)
        facts = {"names": self.names, "ends": self.ends.tolist(), "baseline_scores": self.baseline_scores}
        (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copymode(folder / FACTS, folder / ARRAYS)  # safetensors writes files that no other user can read

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """Read an index from a folder.

        Raises:
            ValueError: There is none.
        """
        index = cls.__new__(cls)
        try:
            arrays = load_file(folder / ARRAYS)
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            index.seeds, index.places = arrays.pop("seeds"), arrays.pop("places")
            index.line = Line(**arrays)
            index.names, index.ends = facts["names"], np.array(facts["ends"], dtype=np.int64)
            index.baseline_scores = facts["baseline_scores"]
            index._check()
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"{folder} holds no index that can be read; make one with the command build ({error})."
            ) from None
        return index

    def _check(self) -> None:
        """Refuse arrays that do not belong together."""
        notes, arrays = len(self.line.pitch), (*self.line, self.seeds, self.places, self.ends)
        fits = (
            all(array.ndim == 1 for array in arrays)
            and all(len(field) == notes for field in self.line)
            and len(self.seeds) == len(self.places)
            and [array.dtype for array in self.line] == [np.float32] * 3 + [np.uint8] * 2
            and (self.seeds.dtype, self.places.dtype) == (np.uint64, np.int32)
            and all(np.isfinite(times).all() for times in self.line[:3])
            and ((self.places >= 0) & (self.places < notes)).all()
            and len(self.names) == len(self.ends)
            and all(isinstance(name, str) for name in self.names)
            and (np.diff(self.ends, prepend=0) >= 0).all()
            and self.ends[-1:].tolist() == [notes]
            and all(isinstance(score, int) for score in self.baseline_scores)
        )
        if not fits:
            raise ValueError("its arrays do not fit together")


def _align(pitch: np.ndarray, gap: np.ndarray, line: Line) -> np.ndarray:
    """Find the best local alignment of a piece in each of some bands, by the method of Smith & Waterman.

    Args:
        pitch: Training notes in the key of the piece, -1 where there are none, `[C, N + W - 1]`.
        gap: The gap before each, `[C, N + W - 1]`.
        line: The N notes of the piece; note n meets the W training notes from n on.

    Returns:
        The score, the first and the last note, and the first and the last training note, `[5, C]`.
    """
    column, rows = np.arange(BAND), np.arange(len(pitch))
    own_gap, counts = _gaps(line.onset), ~is_figuration(line)
    # Score of the best alignment that ends at a note and a training note, and where that began, [C, W] each.
    score, began, began_there = np.zeros((3, len(pitch), BAND), dtype=np.int64)
    best = np.zeros((5, len(pitch)), dtype=np.int64)
    for note in range(len(line.pitch)):
        here = slice(note, note + BAND)
        begins = score == 0
        is_same = (pitch[:, here] == line.pitch[note]) & (begins | (gap[:, here] == own_gap[note]))
        # The training set lacks this note: the training note stays, on the next column of the row above.
        above = np.pad(score[:, 1:], ((0, 0), (0, 1))) + MISSING
        above_began, above_there = (np.pad(field[:, 1:], ((0, 0), (0, 1))) for field in (began, began_there))
        score = score + counts[note] * np.where(is_same, SAME, OTHER)
        began, began_there = np.where(begins, note, began), np.where(begins, note + column, began_there)
        is_above = above > score
        score = np.where(is_above, above, score)
        began, began_there = np.where(is_above, above_began, began), np.where(is_above, above_there, began_there)
        # The piece lacks training notes: the best score to the left, less what each of them costs.
        level = score - MISSING * column
        reached = np.maximum.accumulate(level, axis=1)
        source = np.maximum.accumulate(np.where(level == reached, column, 0), axis=1)
        score = np.maximum(reached + MISSING * column, 0)
        began, began_there = (np.take_along_axis(field, source, axis=1) for field in (began, began_there))

        top = score.argmax(axis=1)
        found = score[rows, top], began[rows, top], np.full(len(rows), note), began_there[rows, top], note + top
        best = np.where(found[0] > best[0], found, best)
    return best


def excerpt(line: Line, start_seconds: float, end_seconds: float) -> Line:
    """Return the notes that begin within some seconds, both included, from the first one on."""
    inside = (line.start >= start_seconds - 1e-3) & (line.start <= end_seconds + 1e-3)
    notes = Line(*(field[inside] for field in line))
    zero = notes.start.min(initial=np.inf)
    return notes._replace(onset=notes.onset - zero, start=notes.start - zero, end=notes.end - zero)


def write_score(line: Line) -> Score:
    """Write notes as a score of one piano track, rounded to milliseconds."""
    start, end = (np.rint(1000 * field).astype(np.int32) for field in (line.start, line.end))
    return piano_score(start, np.maximum(end - start, 1), line.pitch, line.velocity)


def index_corpus(
    train: Dataset, held_out: Dataset, tokenizer: MusicTxTokenizer, seconds: float = EXCERPT_SECONDS
) -> Index:
    """Index the training pieces of a corpus, and measure the baseline on held-out ones.

    Args:
        train: The training split.
        held_out: Another split; compositions of the training split, by composer and title, are left out.
        tokenizer: Their tokenizer.
        seconds: Length of the pieces to check: scores grow with it.

    Returns:
        The index.

    Raises:
        ValueError: Nothing is left.
    """
    index = Index({piece["name"]: _line(piece, tokenizer) for piece in train.with_format("numpy")})
    known = _compositions(train)
    others = [
        row for row, composition in enumerate(_compositions(held_out)) if not composition or composition not in known
    ]
    if not others:
        raise ValueError("every held-out composition is also in the training split: there is no baseline to measure")
    excerpts = []
    for place in np.linspace(0, len(others), EXCERPTS, endpoint=False):
        line = _line(held_out.with_format("numpy")[others[int(place)]], tokenizer)
        # Of a piece that is used more than once, another excerpt each time.
        start = (place % 1) * max(float(line.start[-1]) - seconds, 0.0)
        excerpts.append(excerpt(line, start, start + seconds))
    index.measure_baseline(excerpts)
    return index


def _line(piece: dict, tokenizer: MusicTxTokenizer) -> Line:
    return read_line(tokenizer.to_score(piece["input_ids"]))


def _compositions(split: Dataset) -> list[str]:
    """Normalise composer and title for comparison; empty where the corpus does not name them."""
    if not {"composer", "title"} <= set(split.column_names):
        return [""] * len(split)
    named = zip(split["composer"], split["title"], strict=True)
    return ["".join(re.findall(r"\w", f"{composer} {title}".casefold())) if title else "" for composer, title in named]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user."""
    parser = flags.originality(__doc__)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: (_build if args.command == "build" else _check)(args))


def _build(args: argparse.Namespace) -> None:
    """Index a training set."""
    corpus = load_corpus(args.corpus)
    index = index_corpus(corpus["train"], corpus["validation"], load_tokenizer(args.corpus), args.seconds)
    index.save(args.index)
    print(f"{len(index.names):,} pieces, {len(index.line.pitch):,} notes")
    print(f"baseline: held-out excerpts have alignment scores up to {max(index.baseline_scores, default=0)}")


def _check(args: argparse.Namespace) -> None:
    """Search files for copies."""
    index = Index.load(args.index)
    for path in args.midi:
        if not print_line(report(path, index, args.output_dir)):
            break


def report(path: Path, index: Index, output_dir: Path | None = None) -> str:
    """Search a file for copies, and write both passages.

    Args:
        path: A MIDI file.
        index: The index.
        output_dir: Folder for the passages; None to write none.

    Returns:
        The result as one line.

    Raises:
        ValueError: It is no MIDI file.
    """
    try:
        line = read_line(midi_to_arrays(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    found = index.search(line)
    passage = found.passage
    if output_dir and passage.alignment_score:
        output_dir.mkdir(parents=True, exist_ok=True)
        own = excerpt(line, passage.start_seconds, passage.end_seconds)
        there = excerpt(index.piece(passage.name), passage.training_start_seconds, passage.training_end_seconds)
        write_score(own).dump_midi(output_dir / f"{path.stem}-own.mid")
        write_score(there).dump_midi(output_dir / f"{path.stem}-training.mid")
    verdict = "COPY" if found.is_copy else "original"
    if not passage.alignment_score:
        return f"{path}: {verdict}; no passage of it is in the training set"
    return (
        f"{path}: {verdict}; alignment score {passage.alignment_score}, "
        f"baseline {max(index.baseline_scores, default=0)}: "
        f"from {passage.start_seconds:.1f} to {passage.end_seconds:.1f} s as in {passage.name} "
        f"from {passage.training_start_seconds:.1f} to {passage.training_end_seconds:.1f} s, "
        f"{passage.semitones:+} semitones; longest run {found.longest_run} notes, overlap {found.overlap:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
