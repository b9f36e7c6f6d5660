"""Tokenizers saved by version 0.1 load and give the same ids and notes.

The folder beside this file is a witness. It was written once and is never written again: should a test fail, the code
has to learn what it no longer understands.
"""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import tokenization  # noqa: F401  (registers the tokenizer)

SAVED = Path(__file__).parent / "saved_tokenizer_0_1"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_its_ids_are_what_they_were(name):
    loaded, expected = AutoTokenizer.from_pretrained(SAVED / name), EXPECTED[name]
    assert len(loaded) == expected["length"]
    assert loaded.encode(SAVED / "piece.mid") == expected["input_ids"]
    (track,) = loaded.to_score(expected["input_ids"]).tracks
    assert [[note.time, note.duration, note.pitch, note.velocity] for note in track.notes] == expected["notes"]


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_saved_as_it_was(name, tmp_path):
    AutoTokenizer.from_pretrained(SAVED / name).save_pretrained(tmp_path)
    assert (tmp_path / "miditok.json").read_bytes() == (SAVED / name / "miditok.json").read_bytes()
