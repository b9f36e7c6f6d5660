"""Statistics and histograms of music: of one piece, of a set, and of a set compared with another.

    python -m evaluation.metrics samples
    python -m evaluation.metrics samples --reference maestro-v2.0.0 --seconds 30 --pedal

Notes are taken as they are written. The notes of generated music last as long as they sound; to compare it with a
recording that uses the sustain pedal, extend the recording's notes: `--pedal` here, and elsewhere
`tokenizer.to_score(tokenizer.encode(path))`.

Shape letters: N notes, W windows.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from symusic import Score

from corpus.plain_text import printable
from evaluation.comparison import compare

# Times are sorted into half octaves of seconds, 12 ms to 8.6 s, and what lies beyond. None of the bounds is a multiple
# of 10 ms, so that rounding does not decide.
TIME_BOUNDS = 0.01 * 2 ** (0.25 + np.arange(20) / 2)

# Velocities in fours, as the tokenizer writes them.
VELOCITY_BOUNDS = np.arange(5, 128, 4)

# Bars for the pattern of onsets: recordings have none, so these are four quarters at 120, in sixteenths.
BAR_SECONDS, BAR_CELLS = 2.0, 16

# Lags between windows of one second. Sustained notes make windows similar for less than three seconds.
# Source: the scales of Wu & Yang 2020 (arXiv 2008.01307), section 3.4.
LAGS = {"short": slice(3, 8), "middle": slice(8, 15), "long": slice(15, None)}

# Added to times that are counted in bars, cells or windows: many lie on a border, and rounding should not decide.
ROUNDING_SECONDS = 5e-4

# A longer file is broken, and its windows of a second would fill the memory.
MAX_HOURS = 24

# Notes in a row that make a figure: a 64-bit integer holds eight keys.
FIGURE_NOTES = 8

# Statistics of the amount of music, which are not compared.
AMOUNTS = ("notes", "seconds")


class NoteArrays(NamedTuple):
    """The notes of a score in order of onset, one array element each.

    Args:
        start: Onsets in seconds, `[N]`.
        end: Releases in seconds, `[N]`.
        pitch: Keys, 0..127, `[N]`.
        velocity: Velocities, 1..127, `[N]`.
    """

    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray


def score_to_arrays(score: Score) -> NoteArrays:
    """Merge the notes of all tracks but drums; notes of no length make no sound and are left out.

    Raises:
        ValueError: The score's numbers make no sense; the bounds are those of the tokenizer.
    """
    if score.ticks_per_quarter <= 0:
        raise ValueError(f"{score.ticks_per_quarter} ticks per quarter; at least 1 is needed")
    tracks = [track.notes.numpy() for track in score.to("second").tracks if not track.is_drum]
    time, duration, pitch, velocity = (
        np.concatenate([np.empty(0), *(track[name] for track in tracks)])
        for name in ("time", "duration", "pitch", "velocity")
    )
    return _in_order(time, time + duration, pitch, velocity)


def midi_to_arrays(midi: bytes | Path) -> NoteArrays:
    """Read a MIDI file, or its bytes, as `score_to_arrays` does a score; notes are as long as they are written.

    Raises:
        ValueError: It is no MIDI file, a broken one, or its numbers make no sense.
        OSError: It cannot be read.
    """
    # Imported here, for it takes seconds.
    from tokenization.midi_reader import read_midi

    file = read_midi(midi)
    is_melodic = ~file.is_drum
    start, end, pitch, velocity = (field[is_melodic] for field in (file.start, file.end, file.pitch, file.velocity))
    return _in_order(file.to_seconds(start), file.to_seconds(end), pitch, velocity)


def _in_order(start: np.ndarray, end: np.ndarray, pitch: np.ndarray, velocity: np.ndarray) -> NoteArrays:
    """Sort notes, `[N]` each, and check them."""
    order = np.lexsort((pitch, start))
    order = order[end[order] > start[order]]
    start, end, pitch, velocity = (field[order] for field in (start, end, pitch, velocity))
    hours = (end.max() - start[0]) / 3600 if len(start) else 0
    if not hours <= MAX_HOURS:
        raise ValueError(f"{hours:.0f} hours long; more than {MAX_HOURS} mean that the file is broken")
    if pitch.min(initial=0) < 0:
        raise ValueError(f"a note of pitch {pitch.min():.0f}; pitches are 0 to 127")
    return NoteArrays(start, end, pitch.astype(int), velocity.astype(int))


def cut(notes: NoteArrays, seconds: float) -> NoteArrays:
    """Return the notes that begin within some seconds of the first one; all end when these are over."""
    limit = notes.start.min(initial=np.inf) + seconds
    start, end, pitch, velocity = (field[notes.start < limit] for field in notes)
    return NoteArrays(start, np.minimum(end, limit), pitch, velocity)


def describe(music: "Score | NoteArrays") -> dict[str, float]:
    """Count and average over the notes of one piece.

    Args:
        music: The notes; a score's drums are left out.

    Returns:
        The statistics by name. A piece without notes has only the first two, one too short for a pattern, a lag or a
        figure lacks that.

        - `notes`, `seconds`: how many, and how long from the first onset to the last release
        - `notes_per_second`
        - `polyphony`: mean number of notes sounding, over the time in which any does
        - `silence`: share of the time in which none does, 0..1
        - `pitch_low`, `pitch_high`, `pitch_range`, `pitch_mean`: in semitones; middle C is 60
        - `pitch_class_entropy`: in bits; log2(12) = 3.58 when all twelve are struck equally often
        - `velocity_mean`, `velocity_std`
        - `note_seconds`: mean length of a note
        - `grooving_similarity`: see there
        - `self_similarity_short`, `_middle`, `_long`: see `self_similarity`; lags from 3, 8 and 15 seconds on
        - `repeated_figures`: share of the runs of eight notes that strike the same keys as one before, 0..1
    """
    notes = music if isinstance(music, NoteArrays) else score_to_arrays(music)
    start, end, pitch, velocity = notes
    if len(start) == 0:
        return {"notes": 0.0, "seconds": 0.0}
    seconds = end.max() - start[0]
    # Onsets are in order: silence is wherever an onset comes after all ends so far.
    silent_seconds = np.maximum(start[1:] - np.maximum.accumulate(end)[:-1], 0).sum()
    frequency = np.bincount(pitch % 12) / len(pitch)
    frequency = frequency[frequency > 0]
    statistics = {
        "notes": len(start),
        "seconds": seconds,
        "notes_per_second": len(start) / seconds,
        "polyphony": (end - start).sum() / (seconds - silent_seconds),
        "silence": silent_seconds / seconds,
        "pitch_low": pitch.min(),
        "pitch_high": pitch.max(),
        "pitch_range": np.ptp(pitch),
        "pitch_mean": pitch.mean(),
        "pitch_class_entropy": -(frequency * np.log2(frequency)).sum(),
        "velocity_mean": velocity.mean(),
        "velocity_std": velocity.std(),
        "note_seconds": (end - start).mean(),
        "grooving_similarity": grooving_similarity(notes),
    }
    similarity, pairs = self_similarity(notes)
    for name, lags in LAGS.items():
        if pairs[lags].sum():
            statistics[f"self_similarity_{name}"] = np.average(similarity[lags], weights=pairs[lags])
    statistics["repeated_figures"] = repeated_figures(notes)
    return {name: float(value) for name, value in statistics.items() if value is not None}


def grooving_similarity(notes: NoteArrays) -> float | None:
    """Compare the onsets of every bar with those of every other, cell by cell; bars are `BAR_SECONDS` long.

    Args:
        notes: The notes of a piece.

    Returns:
        The share of cells that are the same, with an onset or without, 0..1; None for less than two bars.

    Source:
        Wu & Yang 2020 (arXiv 2008.01307), section 3.2.
    """
    bars = int((notes.end.max() - notes.start[0] + ROUNDING_SECONDS) / BAR_SECONDS)
    if bars < 2:
        return None
    cell = ((notes.start - notes.start[0] + ROUNDING_SECONDS) * (BAR_CELLS / BAR_SECONDS)).astype(int)
    pattern = np.zeros(bars * BAR_CELLS)
    pattern[cell[cell < len(pattern)]] = 1
    struck = pattern.reshape(bars, BAR_CELLS).sum(axis=0)
    return 1 - 2 * (struck * (bars - struck)).sum() / (BAR_CELLS * bars * (bars - 1))


def self_similarity(notes: NoteArrays) -> tuple[np.ndarray, np.ndarray]:
    """Compare the harmony of every second with that of every later one: how long which pitch classes sound.

    Args:
        notes: The notes of a piece.

    Returns:
        The mean cosine, 0..1, of the seconds that are so many apart, 0 where there are none; and how many pairs of
        sounding seconds there are, `[W]` both.
    """
    windows = int(notes.end.max() - notes.start[0] + ROUNDING_SECONDS)
    borders = notes.start[0] + np.arange(windows + 1.0)
    sounding = np.zeros((12, windows))
    for pitch_class in range(12):
        inside = notes.pitch % 12 == pitch_class
        struck, released = (_time_since(times[inside], borders) for times in (notes.start, notes.end))
        sounding[pitch_class] = np.diff(struck - released)
    length = np.linalg.norm(sounding, axis=0)
    is_sounding = length > 1e-6
    direction = np.where(is_sounding, sounding, 0) / np.where(is_sounding, length, 1)
    pairs = np.rint(_autocorrelation(is_sounding[None].astype(float))).astype(int)
    return _autocorrelation(direction) / np.maximum(pairs, 1), pairs


def _time_since(times: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Sum up, at each border, how long ago each of the times was that have come, `[N]` and `[W]` to `[W]`."""
    times = np.sort(times).astype(float)
    come = np.searchsorted(times, borders)
    return come * borders - np.append(0, np.cumsum(times))[come]


def _autocorrelation(rows: np.ndarray) -> np.ndarray:
    """Sum up the products of what is so many columns apart, `[12, W]` to `[W]`."""
    # Twice the columns, so that the end does not meet the beginning.
    size = 2 * max(rows.shape[1], 1)
    return np.fft.irfft((abs(np.fft.rfft(rows, size)) ** 2).sum(axis=0), size)[: rows.shape[1]]


def repeated_figures(notes: NoteArrays) -> float | None:
    """Count the runs of `FIGURE_NOTES` notes whose keys were struck in this order before.

    Args:
        notes: The notes of a piece.

    Returns:
        Their share of all such runs, 0..1; None for less than two runs.
    """
    runs = len(notes.pitch) - FIGURE_NOTES + 1
    if runs < 2:
        return None
    figures = np.zeros(runs, dtype=np.int64)
    for place in range(FIGURE_NOTES):
        figures = figures << 7 | notes.pitch[place : place + runs]
    return 1 - len(np.unique(figures)) / runs


def histograms(music: "Score | NoteArrays") -> dict[str, np.ndarray]:
    """Sort the notes of one piece.

    Args:
        music: The notes; a score's drums are left out.

    Returns:
        Shares that add up to 1, by name; none of a piece that has no two notes.

        - `pitch_classes`: C to B, `[12]`
        - `note_lengths`: between `TIME_BOUNDS`, `[21]`
        - `inter_onsets`: the times from onset to onset, between the same, `[21]`
        - `velocities`: in fours, `[32]`
    """
    start, end, pitch, velocity = music if isinstance(music, NoteArrays) else score_to_arrays(music)
    if len(start) < 2:
        return {}
    return {
        "pitch_classes": np.bincount(pitch % 12, minlength=12) / len(pitch),
        "note_lengths": _shares(end - start, TIME_BOUNDS),
        "inter_onsets": _shares(np.diff(start), TIME_BOUNDS),
        "velocities": _shares(velocity, VELOCITY_BOUNDS),
    }


def _shares(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return np.bincount(np.digitize(values, bounds), minlength=len(bounds) + 1) / len(values)


def tabulate(pieces: Iterable["Score | NoteArrays"]) -> dict[str, np.ndarray]:
    """Take every statistic and histogram of every piece of a set.

    Args:
        pieces: The pieces, at least one.

    Returns:
        A row for each piece that has it, by name: `[pieces]` of statistics, `[pieces, bins]` of histograms.

    Raises:
        ValueError: The set is empty.
    """
    columns = {}
    for piece in pieces:
        notes = piece if isinstance(piece, NoteArrays) else score_to_arrays(piece)
        for name, value in (describe(notes) | histograms(notes)).items():
            columns.setdefault(name, []).append(value)
    if not columns:
        raise ValueError("There are no pieces to describe; give at least one.")
    return {name: np.array(rows) for name, rows in columns.items()}


def read_folder(folder: Path, seconds: float | None = None, pedal: bool = False) -> dict[str, NoteArrays]:
    """Read all MIDI files of a folder and its subfolders; broken ones are named on stderr and passed over.

    Args:
        folder: The folder.
        seconds: How much of each file is read, from its first note on; all of it if None.
        pedal: Whether notes last as long as the sustain pedal holds them, and come on the tokenizer's grid.

    Returns:
        The notes of each file by its path, in order.

    Raises:
        ValueError: There is no MIDI file.
    """
    # Imported here, for it takes seconds.
    from tokenization import MusicTxTokenizer
    from tokenization.midi_reader import MIDI_SUFFIXES

    tokenizer = MusicTxTokenizer() if pedal else None
    pieces = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in MIDI_SUFFIXES or not path.is_file():
            continue
        try:
            notes = score_to_arrays(tokenizer.to_score(tokenizer.encode(path))) if pedal else midi_to_arrays(path)
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{path}: ").removesuffix(".")
            print(printable(f"passed over {path}: {reason}"), file=sys.stderr)
            continue
        pieces[str(path)] = notes if seconds is None else cut(notes, seconds)
    if not pieces:
        raise ValueError(
            f"{folder} holds no MIDI file that can be read; give a folder with {', '.join(MIDI_SUFFIXES)} files in it."
        )
    return pieces


def compare_tables(table: dict[str, np.ndarray], reference: dict[str, np.ndarray], seed: int = 0) -> dict:
    """Compare two sets, and the halves of the second one: what music of one kind has in common with itself.

    Args:
        table: What `tabulate` makes of a set.
        reference: The same of another.
        seed: Of the halves and the bootstrap.

    Returns:
        By the name of each statistic and histogram that four pieces of the reference have, the fields of two
        comparisons, of the `pieces` and of the `reference`.
    """
    found = {}
    for name in table:
        if name not in AMOUNTS and len(reference.get(name, ())) >= 4:
            known = np.random.default_rng(seed).permutation(reference[name])
            found[name] = {
                "pieces": compare(table[name], known, seed)._asdict(),
                "reference": compare(known[::2], known[1::2], seed)._asdict(),
            }
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.metrics", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of MIDI files")
    parser.add_argument("--reference", type=Path, help="folder of MIDI files to compare with")
    parser.add_argument("--seconds", type=float, help="seconds of each file from its first onset (default: all)")
    parser.add_argument("--pedal", action="store_true", help="extend notes by the sustain pedal")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers of every piece and the comparison")
    args = parser.parse_args(argv)
    try:
        pieces = read_folder(args.folder, args.seconds, args.pedal)
        reference = read_folder(args.reference, args.seconds, args.pedal) if args.reference else {}
    except ValueError as error:
        print(printable(f"{parser.prog}: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing was written", file=sys.stderr)
        return 130

    table = tabulate(pieces.values())
    found = {"pieces": {path: describe(notes) for path, notes in pieces.items()}}
    heads = [f"{printable(args.folder.name)}: {len(pieces)}"]
    rows = {name: [_spread(column)] for name, column in table.items()}
    if reference:
        known = tabulate(reference.values())
        heads.append(f"{printable(args.reference.name)}: {len(reference)}")
        heads += ["overlap", "overlap of its halves", "divergence"]
        found["comparison"] = compare_tables(table, known, args.seed)
        for name, row in rows.items():
            row.append(_spread(known[name]) if name in known else "-")
            if compared := found["comparison"].get(name):
                of_pieces, of_reference = compared["pieces"], compared["reference"]
                estimates = of_pieces["overlap"], of_reference["overlap"], of_pieces["divergence"]
                row += [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in estimates]
    for name, fields in {"": heads, **rows}.items():
        print(f"{name.replace('_', ' '):24}" + "".join(f"{field:>22}" for field in fields))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _spread(column: np.ndarray) -> str:
    """Format mean and standard deviation; a dash for histograms."""
    return f"{column.mean():.4g} ± {column.std():.2g}" if column.ndim == 1 else "-"


if __name__ == "__main__":
    sys.exit(main())
