"""Controls are measured as a plain loop measures them, and stated at the first event of a segment."""

import numpy as np
import pytest

from tokenization import MusicTxTokenizer, PerformanceWithControls
from tokenization.controls import (
    COMPOSERS,
    DENSITY,
    LOUDNESS,
    NOTE_LENGTH,
    SEGMENT_SECONDS,
    SEGMENT_STEPS,
    UNSTATED,
    Controls,
    find_composer,
)
from tokenization.performance import VELOCITY_OF_BIN, events_to_notes

TOKENIZER = MusicTxTokenizer.from_miditok(PerformanceWithControls())
PLAIN = MusicTxTokenizer()
ENCODING = TOKENIZER.miditok


@pytest.fixture(scope="module")
def pieces(make_score):
    """Pieces from BOS to EOS, without controls."""
    return [np.array([*TOKENIZER(make_score(seed, seconds=30.0))["input_ids"], 2]) for seed in range(6)]


def test_events_keep_their_ids_and_controls_stand_behind_them():
    tokens = PLAIN.convert_ids_to_tokens(range(len(PLAIN)))
    assert TOKENIZER.convert_ids_to_tokens(range(len(PLAIN))) == tokens
    assert set(TOKENIZER.get_vocab()) - set(tokens) >= {
        "Density_6",
        "Loudness_60",
        "NoteLength_0.4",
        "Composer_Chopin",
    }
    assert PLAIN.attributes == ()
    assert PLAIN.infill_ids is None


def test_a_tokenizer_with_controls_and_its_own_composers_is_saved_whole(tmp_path, make_score):
    from miditok import TokenizerConfig

    config = TokenizerConfig(special_tokens=["PAD", "BOS", "EOS"], composers=["Ponce", "Castro"])
    own = MusicTxTokenizer.from_miditok(PerformanceWithControls(config))
    own.save_pretrained(tmp_path)
    loaded = MusicTxTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == own.get_vocab()
    assert loaded.attributes[0].values == ("Ponce", "Castro")
    score = make_score(3)
    assert loaded.encode(score) == PLAIN.encode(score)


def measured(ids) -> list[list[str]]:
    """The controls of every whole segment, one note at a time."""
    notes, length = events_to_notes(ENCODING.ids_to_events(ids))
    segments = []
    for begin in range(0, length, SEGMENT_STEPS):
        end = min(begin + SEGMENT_STEPS, length)
        seconds = (end - begin) / 100
        inside = [i for i in range(len(notes.start)) if begin <= notes.start[i] < begin + SEGMENT_STEPS]
        stated = []
        if seconds >= 1:
            stated.append(f"Density_{min(DENSITY.values, key=lambda v: (abs(v - len(inside) / seconds), -v))}")
            if inside:
                velocity = sum(VELOCITY_OF_BIN[notes.velocity[i]] for i in inside) / len(inside)
                stated.append(f"Loudness_{min(LOUDNESS.values, key=lambda v: (abs(v - velocity), -v))}")
                lengths = sorted(notes.end[i] - notes.start[i] for i in inside)
                median = lengths[(len(lengths) - 1) // 2] / 100
                nearest = min(NOTE_LENGTH.values, key=lambda v: (round(max(v / median, median / v), 9), -v))
                stated.append(f"NoteLength_{nearest}")
        segments.append(stated)
    return segments


def test_controls_are_those_of_a_plain_loop_and_stand_before_the_first_event_of_their_segment(pieces):
    for ids in pieces:
        tokens = TOKENIZER.convert_ids_to_tokens(ENCODING.insert_controls(ids).tolist())
        expected, stated, steps, seen = measured(ids), {}, 0, set()
        for index, token in enumerate(tokens):
            kind, _, value = token.partition("_")
            steps += int(value) if kind == "TimeShift" else 0
            segment = steps // SEGMENT_STEPS
            if kind in ("Density", "Loudness", "NoteLength"):
                assert segment not in seen
                stated.setdefault(segment, []).append(token)
            elif kind not in ("TimeShift", "BOS", "EOS"):
                seen.add(segment)
            if segment not in seen and stated.get(segment):
                assert not tokens[index + 1].startswith("TimeShift")
        assert stated == {
            index: expected[index] for index in sorted(seen) if index < len(expected) and expected[index]
        }


def test_without_its_controls_the_music_is_the_same(pieces):
    for ids in pieces:
        stated = ENCODING.insert_controls(ids, composer=3)
        assert len(stated) > len(ids) + 20
        assert [i for i in stated if i < len(PLAIN)] == ids.tolist()
        assert TOKENIZER.to_score(stated).dumps_midi() == TOKENIZER.to_score(ids).dumps_midi()
        assert TOKENIZER.token_seconds[stated].sum() == pytest.approx(TOKENIZER.token_seconds[ids].sum())


def test_any_subset_may_be_stated_and_the_cut_off_segment_of_a_slice_is_not(pieces):
    piece = pieces[0][:-1]
    none = ENCODING.insert_controls(piece, 1, lambda shape: np.zeros(shape, dtype=bool))
    assert none.tolist() == piece.tolist()
    only = ENCODING.insert_controls(piece, 1, lambda shape: np.arange(shape[1])[None] == 1)
    stated = [t for t in TOKENIZER.convert_ids_to_tokens(only.tolist()) if t.startswith("Density")]
    whole = int(TOKENIZER.token_seconds[piece].sum() // SEGMENT_SECONDS)
    assert whole - 1 <= len(stated) <= whole


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("Frédéric Chopin", "Chopin"),
        ("Johann Sebastian Bach", "Bach"),
        ("Johann Sebastian Bach / Ferruccio Busoni", None),
        ("", None),
        ("Manuel M. Ponce", None),
    ],
)
def test_a_composer_is_found_by_the_last_name_and_an_arrangement_has_none(name, token):
    assert find_composer(name, COMPOSERS) == (COMPOSERS.index(token) if token else UNSTATED)


def test_what_is_given_is_the_nearest_value_interpolated_over_time():
    wanted = {"density": 6.2, "loudness": [(0, 60), (20, 100)], "composer": "chopin", "note_length": "planned"}
    controls = Controls(TOKENIZER.attributes, wanted)
    assert controls.stated == [0, 1, 2, 3]
    assert controls.planned == [3]
    assert TOKENIZER.attributes[0].values[controls.value(0, 0)] == "Chopin"
    assert DENSITY.values[controls.value(1, 0)] == 6
    assert [LOUDNESS.values[controls.value(2, steps)] for steps in (0, 500, 1000, 9000)] == [60, 72, 80, 88]
    assert controls.value(3, 0) is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"density": "many"}, r"density \(many\) must be a number \(1 to 22\)"),
        ({"loudness": [(5, 60), (2, 70)]}, "in the order of time"),
        ({"loudness": -3}, "must be a number"),
        ({"composer": "Cage"}, "composer .Cage. must be one of Bach"),
        ({"tempo": 3}, "tempo is no control; there are composer, density, loudness, note_length"),
    ],
)
def test_what_cannot_be_given_is_named_with_what_can(wanted, message):
    with pytest.raises(ValueError, match=message):
        Controls(TOKENIZER.attributes, wanted)


def test_a_model_without_controls_says_what_to_do():
    with pytest.raises(ValueError, match=r"density \(6\): this model knows no controls.*PerformanceWithControls"):
        Controls(PLAIN.attributes, {"density": 6})
