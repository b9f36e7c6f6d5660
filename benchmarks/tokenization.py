"""How fast files and notes become ids and ids become notes, beside MidiTok's MIDILike, in processor time of one core.

    python -m benchmarks.tokenization
    python -m benchmarks.tokenization --archive maestro-v2.0.0-midi.zip --num_files 100

Files are in memory, and read by this repository's reader; beside it stands symusic's, which drops channels and the
order of simultaneous events. Before the clock starts, every score has to come back from its ids, directly and through
the bytes of a MIDI file, as the same ids.
"""

import argparse
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from miditok import MIDILike
from symusic import ControlChange, Note, Score, Tempo, Track

from tokenization import MusicTxTokenizer, Performance
from tokenization.midi_reader import MIDI_SUFFIXES, hold, read_midi, to_score


def piano_score(rng: np.random.Generator, num_notes: int) -> Score:
    """Write a piece as dense as MAESTRO's: 10 notes and 2 strokes of the pedal a second."""
    # Ticks of 1 ms. Three notes of ten fall on one before, as chords do.
    onsets = np.cumsum(rng.exponential(140, num_notes) * (rng.random(num_notes) > 0.3))
    track = Track(program=0)
    track.notes = Note.from_numpy(
        onsets.astype(np.int32),
        rng.lognormal(5.3, 0.8, num_notes).astype(np.int32),
        np.clip(rng.normal(63, 15, num_notes), 21, 108).astype(np.int8),
        np.clip(rng.normal(64, 20, num_notes), 1, 127).astype(np.int8),
        "tick",
    )
    pedal_times = np.arange(0, onsets[-1], 250).astype(np.int32)
    track.controls = ControlChange.from_numpy(
        pedal_times,
        np.full(len(pedal_times), 64, dtype=np.uint8),
        np.where(np.arange(len(pedal_times)) % 2, 0, 100).astype(np.uint8),
        "tick",
    )
    score = Score(500)
    score.tempos.append(Tempo(0, 120))
    score.tracks.append(track)
    return score


def load_files(args: argparse.Namespace) -> list[bytes]:
    """Read the files of the command line, every n-th of many, or make some up."""
    if args.archive:
        with zipfile.ZipFile(args.archive) as archive:
            names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in MIDI_SUFFIXES)
            return [archive.read(name) for name in evenly(names, args.num_files)]
    if args.midi_dir:
        paths = sorted(path for path in args.midi_dir.rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)
        return [path.read_bytes() for path in evenly(paths, args.num_files)]
    rng = np.random.default_rng(0)
    return [piano_score(rng, num_notes=5000).dumps_midi() for _ in range(args.num_files)]


def evenly(items: list, count: int) -> list:
    """Take `count` items evenly from a list, or all if there are fewer."""
    return [items[i] for i in sorted({int(i) for i in np.linspace(0, len(items) - 1, min(count, len(items)))})]


def seconds_of(work: Callable, inputs: list, repeats: int) -> float:
    """Return the seconds that `work` takes for all inputs, the best of several times."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for item in inputs:
            work(item)
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    """Check the round trip, run the clock, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, help="zip archive of MIDI files, such as MAESTRO")
    source.add_argument("--midi_dir", type=Path, help="folder of MIDI files; without either, files are made up")
    parser.add_argument("--num_files", type=int, default=20, help="how many pieces (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs counts (default: 3)")
    args = parser.parse_args()

    files = load_files(args)
    if not files:
        sys.exit(f"{args.archive or args.midi_dir} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}).")
    scores = [to_score(read_midi(file), pedal=False) for file in files]
    tokenizer, performance, midilike = MusicTxTokenizer(), Performance(), MIDILike()
    for number, score in enumerate(scores):
        ids = tokenizer.encode(score)
        decoded = tokenizer.to_score(ids)
        if not ids == tokenizer.encode(decoded) == tokenizer.encode(decoded.dumps_midi()):
            sys.exit(f"Piece {number} does not come back from its ids as the same ids; nothing was measured.")

    num_notes = sum(score.note_num() for score in scores)
    print(f"{len(scores)} pieces, {num_notes:,} notes, best of {args.repeats}; all round trips are exact")
    for name, read in (
        ("this reader", read_midi),
        ("the same, pedals folded in", lambda file: hold(read_midi(file))),
        ("symusic's reader", Score.from_midi),
        ("MusicTxTokenizer, file -> ids", tokenizer.encode),
    ):
        print(f"{name:32}{num_notes / seconds_of(read, files, args.repeats):>10,.0f} notes/s")
    print(f"{'':32}{'tokens':>12}{'score -> ids':>18}{'ids -> score':>18}")
    for name, encode, decode, length in (
        ("MusicTxTokenizer", tokenizer.encode, tokenizer.to_score, len),
        ("Performance (in MidiTok)", performance.encode, performance.decode, len),
        ("MIDILike (MidiTok)", midilike.encode, midilike.decode, lambda tracks: sum(len(track) for track in tracks)),
    ):
        encoded = [encode(score) for score in scores]
        speeds = [num_notes / seconds_of(encode, scores, args.repeats)]
        speeds.append(num_notes / seconds_of(decode, encoded, args.repeats))
        tokens = sum(length(ids) for ids in encoded)
        print(f"{name:32}{tokens:>12,}" + "".join(f"{speed:>10,.0f} notes/s" for speed in speeds))


if __name__ == "__main__":
    main()
