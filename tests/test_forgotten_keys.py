"""Keys that a release has left out come up; keys that fingers hold are left alone."""

import pytest
import torch
from tiny_models import make_model

from tokenization import MusicTxTokenizer, generate_music, piano_logits_processors
from tokenization.performance import events_to_notes

TOKENIZER = MusicTxTokenizer()
IDS = TOKENIZER.get_vocab()

CHORD = ["BOS_None", "Velocity_62", *(f"NoteOn_{key}" for key in (48, 60, 64, 67))]


def raised(*tokens: str, prompt_length: int = 1) -> dict[str, float]:
    """What is added to the scores after some tokens."""
    forgotten_keys, *_ = piano_logits_processors(TOKENIZER, prompt_length=prompt_length)
    scores = forgotten_keys(torch.tensor([[IDS[token] for token in tokens]]), torch.zeros(1, len(TOKENIZER)))[0]
    return {TOKENIZER.convert_ids_to_tokens(id): float(scores[id]) for id in scores.nonzero().flatten().tolist()}


def release(*keys: int) -> list[str]:
    """A second, in which keys come up in one step after half of it."""
    return ["TimeShift_50", *(f"NoteOff_{key}" for key in keys), "TimeShift_50"]


def test_a_key_that_a_release_leaves_out_is_raised_by_the_square_of_the_seconds():
    chord = [*CHORD, *release(60, 64, 67)]
    assert raised(*chord) == pytest.approx({"NoteOff_48": 0.25})
    assert raised(*chord, "TimeShift_100") == pytest.approx({"NoteOff_48": 2.25})
    assert raised(*chord, "NoteOff_48") == {}


def test_the_first_release_counts_whatever_is_struck_and_released_later():
    later = ["NoteOn_72", "NoteOn_74", "NoteOn_76", *release(72, 74, 76)]
    assert raised(*CHORD, *release(60, 64, 67), *later) == pytest.approx({"NoteOff_48": 2.25})


def test_a_key_that_comes_up_alone_is_no_release():
    assert raised(*CHORD, *release(60), *release(67), "TimeShift_100") == {}
    assert set(raised(*CHORD, *release(60, 67))) == {"NoteOff_48", "NoteOff_64"}


def test_a_key_struck_after_the_release_or_again_is_not_forgotten():
    chord = [*CHORD, "TimeShift_50", "NoteOff_60", "NoteOff_64", "NoteOff_67", "NoteOn_72", "TimeShift_100"]
    assert raised(*chord) == pytest.approx({"NoteOff_48": 1.0})
    assert raised(*chord, "NoteOff_48", "NoteOn_48", "TimeShift_100") == {}


def test_what_the_prompt_holds_counts_from_its_end():
    chord = [*CHORD, *release(60, 64, 67), "TimeShift_100"]
    assert raised(*chord, prompt_length=len(chord)) == {}
    assert raised(*chord, "TimeShift_100", prompt_length=len(chord)) == pytest.approx({"NoteOff_48": 1.0})


def test_music_of_random_weights_holds_fewer_keys_for_ten_seconds(monkeypatch):
    shares = []
    for rate in (0.0, 1.0):
        monkeypatch.setattr("tokenization.forgotten_keys.RATE", rate)
        torch.manual_seed(0)
        (ids,) = generate_music(make_model(TOKENIZER), TOKENIZER, seconds=30, do_sample=True)
        notes, length = events_to_notes(TOKENIZER.miditok.ids_to_events(ids))
        shares.append(((notes.end.clip(max=length) - notes.start) >= 999).mean())
    assert shares[0] > 2 * shares[1]
