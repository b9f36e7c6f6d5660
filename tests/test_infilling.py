"""A gap's example holds the music after it, before it and in it, and joins to the very piece it was cut from."""

import numpy as np
import pytest

from tokenization import MusicTxTokenizer, PerformanceWithControls
from tokenization.infilling import divide, infill_sequence
from tokenization.performance import events_to_notes

TOKENIZER = MusicTxTokenizer.from_miditok(PerformanceWithControls())
ENCODING = TOKENIZER.miditok
GAPS = [(0, 150), (200, 700), (333, 334), (1500, 10**6)]


def texts(ids) -> list[str]:
    return [token.removesuffix("_None") for token in TOKENIZER.convert_ids_to_tokens(np.asarray(ids).tolist())]


@pytest.fixture(scope="module")
def pieces(make_score):
    """Pieces from BOS to EOS, some with controls."""
    plain = [np.array([*TOKENIZER(make_score(seed, seconds=20.0))["input_ids"], 2]) for seed in range(4)]
    return [*plain, *(ENCODING.insert_controls(ids, composer=1) for ids in plain)]


@pytest.mark.parametrize(("start", "stop"), GAPS)
def test_the_parts_of_a_piece_are_the_piece(start, stop, pieces):
    for ids in pieces:
        parts = divide(ids, ENCODING, start, stop)
        assert np.concatenate([parts.prefix, parts.middle, parts.suffix]).tolist() == ids.tolist()
        assert round(TOKENIZER.token_seconds[parts.middle].sum() * 100) == parts.steps
        assert texts(parts.suffix[:1])[0].partition("_")[0] != "TimeShift"
        assert texts(parts.prefix[-1:])[0].partition("_")[0] != "TimeShift"
        assert texts(parts.prefix[:1]) == ["BOS"]
        assert texts(parts.suffix[-1:]) == ["EOS"]


@pytest.mark.parametrize(("start", "stop"), GAPS)
def test_an_example_of_infilling_joins_to_the_piece(start, stop, pieces):
    for ids in pieces:
        example = infill_sequence(ids, ENCODING, start, stop, 10**6)
        words = texts(example)
        assert words[0] == "Infill_Suffix"
        assert words[-1] == "Infill_End"
        assert words.count("Infill_Prefix") == 1
        gap = words[1 : next(i for i, word in enumerate(words) if i and not word.startswith("TimeShift"))]
        parts = divide(ids, ENCODING, start, stop)
        assert sum(int(word.removeprefix("TimeShift_")) for word in gap) == parts.steps
        (joined, length), (notes, expected) = (events_to_notes(ENCODING.ids_to_events(x)) for x in (example, ids))
        assert length == expected
        assert all(np.array_equal(*fields) for fields in zip(joined, notes, strict=True))


def test_the_first_note_of_a_suffix_has_its_velocity(pieces):
    for ids in pieces:
        words = texts(infill_sequence(ids, ENCODING, 300, 800, 10**6))
        struck = next(i for i, word in enumerate(words) if word.startswith("NoteOn"))
        assert any(word.startswith("Velocity") for word in words[:struck])


@pytest.mark.parametrize("length", [100, 150, 400])
def test_an_example_fits_by_leaving_out_what_is_far_from_the_gap(length, pieces):
    for ids in pieces:
        example = infill_sequence(ids, ENCODING, 600, 750, length)
        whole = infill_sequence(ids, ENCODING, 600, 750, 10**6)
        if example is None:
            assert len(divide(ids, ENCODING, 600, 750).middle) > length // 2
            continue
        assert len(example) == min(length, len(whole))
        border, end = (texts(example).index(word) for word in ("Infill_Prefix", "Infill_End"))
        assert whole[:border].tolist() == example[:border].tolist()
        assert whole[len(whole) - (end - border) :].tolist() == example[border + 1 :].tolist()


def test_a_gap_without_music_after_it_is_no_example(pieces):
    assert infill_sequence(pieces[0][:-1], ENCODING, 500, 10**6, 1024) is None
