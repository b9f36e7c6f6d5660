"""Long music is compared, minute by minute, with real music."""

import datasets
import numpy as np
import pytest
from tiny_models import save_model

from evaluation import drift, sampling
from evaluation.metrics import NoteArrays
from tokenization import MusicTxTokenizer, PerformanceWithControls


def steady(minutes: float, per_second: float, seconds: float = 0.5, begin: float = 0.0) -> NoteArrays:
    """Notes of one length at even distances."""
    start = begin + np.arange(0, 60 * minutes, 1 / per_second)
    return NoteArrays(start, start + seconds, 60 + np.arange(len(start)) % 12, np.full(len(start), 64))


def joined(*parts: NoteArrays) -> NoteArrays:
    """Several pieces as one."""
    return NoteArrays(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


REAL = [steady(3, per_second) for per_second in np.linspace(3, 12, 30)]


def compared(piece: NoteArrays) -> dict[str, drift.Drift]:
    """A generated piece beside the real ones."""
    return drift.measure_drift([drift.minutes_of(piece)], [drift.minutes_of(notes) for notes in REAL])


def test_every_whole_minute_is_described_and_a_rest_of_one_is_not():
    minutes = drift.minutes_of(joined(steady(2, 4), steady(1.5, 8, begin=120)))
    assert minutes["notes_per_second"] == pytest.approx([4, 4, 8], rel=0.02)
    assert minutes["note_seconds"] == pytest.approx([0.5, 0.5, 0.5], rel=0.02)
    assert len(drift.minutes_of(joined(steady(1, 4), steady(1.1, 4, begin=120)))["polyphony"]) == 2
    assert len(drift.minutes_of(steady(0.9, 4))["polyphony"]) == 0
    nothing = NoteArrays(*(np.empty(0) for _ in range(4)))
    assert len(drift.minutes_of(nothing)["polyphony"]) == 0


def test_music_that_stays_as_it_was_has_no_minutes_outside():
    found = compared(steady(20.1, 7))["notes_per_second"]
    assert found.outside == 0
    assert found.first == pytest.approx(found.last, rel=0.02)
    assert 3 <= found.low < 4 < 11 < found.high <= 12.1


def test_music_that_grows_denser_is_found():
    found = compared(joined(steady(10, 8), steady(10.1, 24, begin=600)))["notes_per_second"]
    assert found.outside == pytest.approx(0.5)
    assert (found.first, found.last) == (pytest.approx(8, rel=0.02), pytest.approx(24, rel=0.02))


def test_pieces_without_a_whole_minute_are_refused():
    with pytest.raises(ValueError, match="no whole minute"):
        compared(steady(0.5, 8))


def test_the_command_compares_music_as_by_default_with_music_without_controls(
    tmp_path, make_score, monkeypatch, capsys
):
    tokenizer = MusicTxTokenizer.from_miditok(PerformanceWithControls())
    save_model(tmp_path, tokenizer)
    ids = tokenizer(make_score(seconds=75.0))["input_ids"]
    given = []
    real = {"validation": datasets.Dataset.from_dict({"input_ids": [ids]})}
    monkeypatch.setattr(drift, "load_corpus", lambda name: real)
    monkeypatch.setattr(sampling, "generate_music", lambda *_, **options: given.append(options) or [np.array(ids)])
    assert drift.main(["--model", str(tmp_path), "--corpus", "real", "--minutes", "2"]) == 0
    assert [options["seconds"] for options in given] == [120, 120]
    assert given[0]["controls"] is None
    assert given[1]["controls"] == {"density": "off"}
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["as by default:", "without controls:"]
    assert sum("0.0% of the minutes outside" in line for line in lines) == 6
