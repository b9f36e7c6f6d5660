"""What was wanted is compared with what is played by rank correlation, over whole pieces."""

import numpy as np
import pytest

from evaluation import controls
from tokenization import MusicTxTokenizer, PerformanceWithControls

TOKENIZER = MusicTxTokenizer.from_miditok(PerformanceWithControls())


def piece(density: float, loudness: float, note_length: float, seconds: float = 8.0) -> np.ndarray:
    """The ids of notes that follow each other as the controls say."""
    tokens, now = ["BOS_None"], 0
    velocity = 4 * round((loudness - 2) / 4) + 2
    tokens.append(f"Velocity_{velocity}")
    events = []
    for index in range(round(density * seconds)):
        start = round(100 * index / density)
        pitch = 30 + index % 60
        events += [(start, 1, f"NoteOn_{pitch}"), (start + round(100 * note_length), 0, f"NoteOff_{pitch}")]
    for time, _, token in sorted(events):
        full, rest = divmod(time - now, 100)
        tokens += ["TimeShift_100"] * full + ([f"TimeShift_{rest}"] if rest else [])
        tokens.append(token)
        now = time
    return np.array(TOKENIZER.convert_tokens_to_ids(tokens))


def test_a_model_that_does_as_it_is_told_has_a_correlation_near_one_and_a_deaf_one_near_zero(monkeypatch):
    def obeys(model, tokenizer, seconds, controls, **options):
        return [piece(**controls)]

    def does_not(model, tokenizer, seconds, controls, **options):
        return [
            piece(*np.random.default_rng(round(1000 * sum(controls.values()))).uniform([2, 40, 0.1], [9, 80, 0.9]))
        ]

    for generate, low, high in ((obeys, 0.97, 1.0), (does_not, -0.5, 0.5)):
        monkeypatch.setattr(controls, "generate_music", generate)
        correlations = controls.measure_controls(None, TOKENIZER, num_samples=40).correlations()
        assert set(correlations) == {"density", "loudness", "note_length"}
        assert all(low <= value <= high for value in correlations.values()), correlations


def test_equal_numbers_share_their_rank():
    assert controls._ranks(np.array([5, 1, 5, 9])).tolist() == [2.5, 1, 2.5, 4]


def test_a_model_without_controls_is_refused():
    with pytest.raises(ValueError, match="knows no controls"):
        controls.measure_controls(None, MusicTxTokenizer())
