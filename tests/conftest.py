"""Fixtures: piano scores, a folder of MIDI files, files that are broken, a prepared corpus and a finished training."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from symusic import ControlChange, Note, Score, Tempo, Track


def _make_score(
    seed: int = 0,
    seconds: float = 10.0,
    pedal: bool = True,
    tempo_changes: bool = False,
    tracks: int = 1,
    pitches: range = range(48, 84),
) -> Score:
    """Write a random piano piece: chords and runs, overlaps, keys struck again, pedal.

    Args:
        seed: The same seed gives the same score.
        seconds: About how long it lasts, at most.
        pedal: Whether the sustain pedal is used, with half values and repeated messages, and left down at the end.
        tempo_changes: Whether the tempo changes every second or so; otherwise 120 quarters per minute.
        tracks: How many piano tracks share the notes and the pedal.
        pitches: The keys to choose from, at least 4; few of them make many strikes of sounding keys.
    """
    rng = random.Random(seed)
    score = Score(480)
    score.tempos.append(Tempo(0, 120))
    score.tracks.extend([Track(program=0) for _ in range(tracks)])
    end = int(seconds * 960)
    now = rng.randrange(480)
    while now < end:
        for pitch in rng.sample(pitches, rng.choice([1, 1, 1, 2, 3, 4])):
            duration = rng.choice([1, 5, 60, 120, 240, 480, 960])
            track = rng.choice(list(score.tracks))
            track.notes.append(Note(now, duration, pitch, rng.randint(1, 127)))
        now += rng.choice([1, 7, 24, 60, 120, 120, 240, 600])
    if pedal:
        for track in score.tracks:
            for time in sorted(rng.sample(range(end), max(2, int(seconds)))):
                track.controls.append(ControlChange(time, 64, rng.choice([0, 0, 30, 63, 64, 90, 127, 127])))
            track.controls.append(ControlChange(end, 64, 127))
    if tempo_changes:
        for time in range(700, end, 1100):
            score.tempos.append(Tempo(time, rng.uniform(30, 300)))
    return score


@pytest.fixture(scope="session")
def make_score() -> Callable[..., Score]:
    """Return the function that writes random piano scores; see there for its arguments."""
    return _make_score


@pytest.fixture
def midi_folder(tmp_path: Path) -> Path:
    """Return a folder of six valid MIDI files, one of them in a subfolder, and a text file."""
    folder = tmp_path / "midi"
    (folder / "deeper").mkdir(parents=True)
    names = ["one.mid", "two.midi", "THREE.MID", "with space.mid", "größer.mid", "deeper/six.mid"]
    for seed, name in enumerate(names):
        _make_score(seed, seconds=8.0 + seed).dump_midi(folder / name)
    (folder / "notes.txt").write_text("no music", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def broken_midis() -> dict[str, bytes]:
    """Return the bytes of MIDI files that cannot be encoded, by what is wrong with them."""
    valid = _make_score(seed=1).dumps_midi()
    silent = Score(480)
    silent.tracks.append(Track(program=0))
    silent.tracks[0].controls.append(ControlChange(0, 64, 127))
    drums = Score(480)
    drums.tracks.append(Track(is_drum=True))
    drums.tracks[0].notes.append(Note(0, 100, 38, 90))
    return {
        "empty": b"",
        "text": b"This is not a MIDI file, whatever its name says.",
        "truncated": valid[: len(valid) // 2],
        "bytes stripped": valid[:200] + valid[203:],
        "no tracks": b"MThd\x00\x00\x00\x06\x00\x01\x00\x00\x01\xe0",
        "no time": valid[:12] + b"\x00\x00" + valid[14:],
        "no notes": silent.dumps_midi(),
        "only drums": drums.dumps_midi(),
    }


@pytest.fixture(scope="session")
def corpus(make_score, tmp_path_factory):
    """A prepared corpus of a few random pieces, for trainings."""
    # Imported here, because most tests need neither.
    import datasets

    from tokenization import MusicTxTokenizer

    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = MusicTxTokenizer()
    splits, seed = {}, 0
    for split, count in {"train": 6, "validation": 2, "test": 1}.items():
        rows = []
        for _ in range(count):
            seed += 1
            ids = [*tokenizer(make_score(seed))["input_ids"], tokenizer.eos_token_id]
            rows.append({"name": f"{seed}.mid", "input_ids": ids})
        features = {"name": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("uint16"))}
        splits[split] = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    datasets.DatasetDict(splits).save_to_disk(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "report.json").write_text(json.dumps({"fingerprint": "of the corpus"}))
    return folder


@pytest.fixture(scope="session")
def steady(corpus, tmp_path_factory):
    """The folder of an uninterrupted run of the steady recipe, see tiny_training.py."""
    from tiny_training import STEADY, run

    folder = tmp_path_factory.mktemp("steady")
    run(corpus, folder, STEADY)
    return folder
