"""Chorales: four voices in turn, from scores to ids and back, and a tokenization like any other."""

import numpy as np
import pytest
from symusic import Note, Score, Tempo, Track
from transformers import AutoTokenizer

from tokenization import MusicTxTokenizer
from tokenization.chorales import MAX_STEPS, SILENCE, Chorales, score_to_steps, steps_to_score

STEPS = np.array([[60, 55, 52, 36], [60, 55, SILENCE, 36], [62, 55, 53, 38], [SILENCE, 55, 53, 38]])
TOKENS = (
    "Pitch_60 Pitch_55 Pitch_52 Pitch_36 Pitch_60 Pitch_55 Silence_None Pitch_36 "
    "Pitch_62 Pitch_55 Pitch_53 Pitch_38 Silence_None Pitch_55 Pitch_53 Pitch_38"
)


@pytest.fixture(scope="module")
def tokenizer():
    return MusicTxTokenizer.from_miditok(Chorales())


def random_steps(seed, length):
    random = np.random.default_rng(seed)
    steps = random.integers(SILENCE, 128, (length, 4))
    # Held notes, and a note in the last step.
    steps = steps[np.sort(random.integers(0, length, length))]
    steps[-1] = [72, 67, 64, 48]
    return steps


def test_in_every_step_the_voices_speak_in_turn(tokenizer):
    ids = tokenizer.encode(steps_to_score(STEPS), add_special_tokens=False)
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == TOKENS


def test_the_vocabulary_is_silence_and_the_pitches(tokenizer):
    vocabulary = list(tokenizer.get_vocab())
    assert vocabulary[:5] == ["PAD_None", "BOS_None", "EOS_None", "Silence_None", "Pitch_0"]
    assert len(tokenizer) == len(vocabulary) == 132


@pytest.mark.parametrize("seed", range(5))
def test_a_chorale_comes_back_from_ids_from_midi_and_from_both(tokenizer, seed):
    steps = random_steps(seed, 100)
    midi = steps_to_score(steps).dumps_midi()
    assert np.array_equal(score_to_steps(Score.from_midi(midi)), steps)
    score = tokenizer.to_score(tokenizer.encode(midi))
    assert np.array_equal(score_to_steps(score), steps)
    assert tokenizer.encode(score.dumps_midi()) == tokenizer.encode(midi)


def test_pitches_that_stay_are_one_note():
    notes = {
        track.name: [(note.time, note.duration, note.pitch) for note in track.notes]
        for track in steps_to_score(STEPS).tracks
    }
    assert notes == {
        "Soprano": [(0, 240, 60), (240, 120, 62)],
        "Alto": [(0, 480, 55)],
        "Tenor": [(0, 120, 52), (240, 240, 53)],
        "Bass": [(0, 240, 36), (240, 240, 38)],
    }


def test_a_voice_that_rests_throughout_is_missed_by_its_name():
    steps = random_steps(0, 20)
    steps[:, 1] = SILENCE
    assert np.array_equal(score_to_steps(Score.from_midi(steps_to_score(steps).dumps_midi())), steps)


def test_scores_of_others_are_read_on_the_grid_whatever_their_tempo_and_resolution():
    score = Score(96)
    score.tempos.append(Tempo(0, 73))
    score.tracks.append(Track(name="the title, no notes"))
    for number, pitch in enumerate((72, 67, 64, 48)):
        track = Track(name=f"Part {number}")
        # A little early or late, and in the bass two notes that overlap.
        track.notes.append(Note(1, 46, pitch, 80))
        track.notes.append(Note(49 - 10 * (pitch == 48), 47, pitch + 2, 80))
        score.tracks.append(track)
    assert score_to_steps(score).tolist() == [[72, 67, 64, 48], [72, 67, 64, 48], [74, 69, 66, 50], [74, 69, 66, 50]]


def test_what_is_no_chorale_is_refused(tokenizer, make_score, broken_midis):
    with pytest.raises(ValueError, match="1 voices in it; a chorale has four"):
        tokenizer(make_score())
    long = steps_to_score(STEPS)
    long.tracks[0].notes.append(Note(0, 120 * (MAX_STEPS + 1), 60, 64))
    with pytest.raises(ValueError, match="65537 sixteenth notes long"):
        tokenizer(long)
    for midi in broken_midis.values():
        with pytest.raises(ValueError, match="MIDI bytes"):
            tokenizer(midi)


def test_any_ids_whatever_become_a_score(tokenizer):
    random = np.random.default_rng(0)
    for _ in range(50):
        ids = random.integers(-5, 200, random.integers(0, 50))
        score = tokenizer.to_score(ids)
        assert [track.name for track in score.tracks] == ["Soprano", "Alto", "Tenor", "Bass"]
    step = tokenizer.to_score(tokenizer.convert_tokens_to_ids(["BOS_None", "Pitch_60", "Pitch_55", "EOS_None"]))
    assert [[note.pitch for note in track.notes] for track in step.tracks] == [[60], [55], [], []]


def test_four_tokens_move_time_on_by_a_sixteenth_note(tokenizer):
    ids = tokenizer.encode(steps_to_score(STEPS))
    assert tokenizer.token_seconds[ids].sum() == 4 * 0.125 == tokenizer.to_score(ids).to("second").end()


def test_augmentation_moves_the_voices_and_leaves_silence_and_time(tokenizer):
    ids = np.array([1, *tokenizer.encode(steps_to_score(STEPS), add_special_tokens=False), 2], dtype=np.uint16)
    moved = tokenizer.augment(ids, semitones=-3, stretch=1.05)
    assert moved.dtype == ids.dtype
    assert moved[[0, -1]].tolist() == [1, 2]
    expected = np.where(STEPS == SILENCE, SILENCE, STEPS - 3)
    assert np.array_equal(score_to_steps(tokenizer.to_score(moved)), expected)
    with pytest.raises(ValueError, match=r"semitones is 66; .* from -36 to 65"):
        tokenizer.augment(ids, semitones=66)


def test_the_tokenization_saves_and_loads_like_any_other(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is MusicTxTokenizer
    assert isinstance(loaded.miditok, Chorales)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.encode(steps_to_score(STEPS)) == tokenizer.encode(steps_to_score(STEPS))


def test_a_batch_is_padded_as_with_any_other_encoding(tokenizer):
    batch = tokenizer([steps_to_score(STEPS), steps_to_score(STEPS[:2])], padding=True, return_tensors="np")
    assert batch["input_ids"].shape == (2, 17)
    assert batch["attention_mask"].sum(1).tolist() == [17, 9]
