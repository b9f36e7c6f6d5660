"""Four-part chorales on a grid of sixteenth notes: scores to steps and back, and their encoding.

Each step holds the four voices in the order soprano, alto, tenor, bass, each a pitch or silence. A pitch that stays
from one step to the next is one held note: the data do not mark repeated notes.

Shape letters: T steps, L ids.

Source: Huang et al., "Music Transformer" (arXiv 1809.04281), section 4.1.
"""

import os

import numpy as np
from miditok import TokenizerConfig
from symusic import Note, Score, Tempo, Track

from .single_stream import SingleStream

VOICES = ("Soprano", "Alto", "Tenor", "Bass")

# In place of a pitch, where a voice rests.
SILENCE = -1

STEPS_PER_QUARTER = 4
NUM_PITCHES = 128

# The data hold no tempo. At 120 quarters per minute a step lasts an eighth of a second.
QUARTERS_PER_MINUTE = 120
TICKS_PER_QUARTER = 480
STEP_SECONDS = 60 / QUARTERS_PER_MINUTE / STEPS_PER_QUARTER

# Hours of music. Broken files claim more, and every step of them would be four tokens.
MAX_STEPS = 1 << 16


def steps_to_score(steps: np.ndarray) -> Score:
    """Write steps as a score of four tracks, equal pitches in a row as one note.

    Args:
        steps: The pitch of each voice, or SILENCE, `[T, 4]`.

    Returns:
        The score.
    """
    ticks_per_step = TICKS_PER_QUARTER // STEPS_PER_QUARTER
    score = Score(TICKS_PER_QUARTER)
    score.tempos.append(Tempo(0, QUARTERS_PER_MINUTE))
    for voice, name in enumerate(VOICES):
        pitch = np.asarray(steps)[:, voice]
        # A note begins where the pitch differs from the step before, and lasts until the next such place.
        begins = np.flatnonzero(np.diff(pitch, prepend=SILENCE - 1))
        lasts = np.diff(begins, append=len(pitch))
        sounds = pitch[begins] != SILENCE
        track = Track(name=name, program=0)
        track.notes = Note.from_numpy(
            (begins[sounds] * ticks_per_step).astype(np.int32),
            (lasts[sounds] * ticks_per_step).astype(np.int32),
            pitch[begins[sounds]].astype(np.int8),
            np.full(sounds.sum(), 64, dtype=np.int8),
            "tick",
        )
        score.tracks.append(track)
    return score


def score_to_steps(score: Score) -> np.ndarray:
    """Read four voices on the grid; where notes of a voice overlap, the later one is kept.

    Args:
        score: A score in ticks, with a track for each voice: of their names, or from the highest to the lowest.

    Returns:
        The pitch of each voice, or SILENCE, `[T, 4]`.

    Raises:
        ValueError: The score has not four voices, has no notes, or is too long.
    """
    named = {track.name: track for track in score.tracks}
    if named.keys() <= set(VOICES) and named:  # a voice that rests throughout may have been left out
        voices = [named.get(name, Track()) for name in VOICES]
    else:
        voices = [track for track in score.tracks if track.notes and not track.is_drum]
    if len(voices) != len(VOICES) or not any(track.notes for track in voices):
        raise ValueError(f"{len(voices)} voices in it; a chorale has four tracks, from the soprano down to the bass")

    ticks_per_step = score.ticks_per_quarter / STEPS_PER_QUARTER
    parts = []
    for track in voices:
        notes = track.notes.numpy()
        start = np.rint(notes["time"] / ticks_per_step).astype(np.int64)
        end = np.rint((notes["time"].astype(np.int64) + notes["duration"]) / ticks_per_step).astype(np.int64)
        parts.append((start, np.maximum(end, start + 1), notes["pitch"]))
    length = max(end.max(initial=0) for _, end, _ in parts)
    if length > MAX_STEPS:
        raise ValueError(f"{length} sixteenth notes long; more than {MAX_STEPS} mean that the file is broken")

    steps = np.full((length, len(VOICES)), SILENCE)
    for voice, (start, end, pitch) in enumerate(parts):
        for note in np.argsort(start, kind="stable"):
            steps[start[note] : end[note], voice] = pitch[note]
    return steps


class Chorales(SingleStream):
    """The paper's encoding of four-part chorales as a MidiTok tokenization: 129 tokens, four to a step.

    Silence_None and Pitch_0..127 follow MidiTok's special tokens. The position of a token alone determines its voice.
    Time is counted in steps; there are no tempos and no velocities.

    Args:
        tokenizer_config: MidiTok's configuration, for other special tokens.
        params: Path of a file that `save` wrote.

    Source: Huang et al. (arXiv 1809.04281), section 4.1.
    """

    def __init__(self, tokenizer_config: TokenizerConfig | None = None, params: str | os.PathLike | None = None):
        super().__init__(tokenizer_config, params)
        # Silence stands one below the pitches, as SILENCE does.
        self._id_of_pitch_0 = self.vocab["Pitch_0"]
        # Seconds by which each id moves time on, [V]: a voice's share of the step.
        is_voice = np.isin(np.arange(len(self.vocab)), [self.vocab[token] for token in self._create_base_vocabulary()])
        self.token_seconds = np.where(is_voice, STEP_SECONDS / len(VOICES), 0.0)

    def _create_base_vocabulary(self) -> list[str]:
        return ["Silence_None", *(f"Pitch_{pitch}" for pitch in range(NUM_PITCHES))]

    def _create_token_types_graph(self) -> dict[str, set[str]]:
        return {kind: {"Pitch", "Silence"} for kind in ("Pitch", "Silence")}

    def encode_score(self, score: Score) -> np.ndarray:
        """Return the ids of a score of four voices in ticks, `[L]`."""
        return score_to_steps(score).flatten() + self._id_of_pitch_0

    def decode_ids(self, ids: np.ndarray) -> Score:
        """Return the score of any ids, `[L]`; voices missing from the last step are silent."""
        pitch = ids[self.is_event(ids)] - self._id_of_pitch_0
        pitch = np.append(pitch, np.full(-len(pitch) % len(VOICES), SILENCE))
        return steps_to_score(pitch.reshape(-1, len(VOICES)))

    def is_event(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids stand for a pitch or silence.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            False for special tokens and for what is outside the vocabulary, `[L]`.
        """
        return (ids >= self._id_of_pitch_0 + SILENCE) & (ids < self._id_of_pitch_0 + NUM_PITCHES)

    def augment(self, ids: np.ndarray, semitones: int = 0, stretch: float = 1.0) -> np.ndarray:
        """Transpose a chorale, or any slice of one.

        Args:
            ids: The slice, special tokens included, `[L]`.
            semitones: Added to every pitch.
            stretch: Left aside: music that counts sixteenth notes has no tempo.

        Returns:
            The new ids, `[L]`.

        Raises:
            ValueError: A pitch would leave 0..127.
        """
        pitch = ids.astype(np.int64) - self._id_of_pitch_0
        sounds = (pitch >= 0) & (pitch < NUM_PITCHES)
        moved = pitch[sounds] + semitones
        if len(moved) and not 0 <= moved.min() <= moved.max() < NUM_PITCHES:
            down, up = pitch[sounds].min(), NUM_PITCHES - 1 - pitch[sounds].max()
            raise ValueError(f"semitones is {semitones}; this music stays on the keyboard from {-down} to {up}.")
        ids = ids.copy()
        ids[sounds] = moved + self._id_of_pitch_0
        return ids
