"""The encodings that a saved tokenizer may name: this package's own and MidiTok's, and what differs between them.

MidiTok's own encodings count beats; the seconds of their tokens and their transposition are computed here.

Shape letters: L ids, V vocabulary.
"""

import numpy as np
from miditok import BEAT, MMM, REMI, TSD, MIDILike, MusicTokenizer, PerTok, Structured

from .chorales import Chorales
from .performance_encoding import Performance, PerformanceWithControls

# Encodings with one stream of tokens and one vocabulary, by the name in `miditok.json`.
ENCODINGS = {
    kind.__name__: kind
    for kind in (Performance, PerformanceWithControls, Chorales, BEAT, MIDILike, MMM, PerTok, REMI, Structured, TSD)
}

# How the tokens that begin a note begin.
SOUNDING = ("NoteOn_", "Pitch", "DrumOn_")

# The types of MidiTok's tokens that name a key, and those that are the same in every key. Others (chords by their
# root, key signatures, BEAT's pitches, some of which are intervals) are not transposed.
PITCHED = {"NoteOff", "NoteOn", "Pitch"}
UNPITCHED = {
    *("Bar", "Position", "TimeShift", "Rest", "Tempo", "TimeSig", "Duration", "MicroTiming", "Velocity", "Program"),
    *("Track", "Pedal", "PedalOff", "PitchBend", "PitchDrum", "DrumOn", "DrumOff"),
    *("PitchIntervalTime", "PitchIntervalChord"),
}


def find_encoding(name: str) -> type[MusicTokenizer]:
    """Return the class of an encoding."""
    if name not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise ValueError(f"{name} is no encoding of one stream and one vocabulary that is known here: {known}.")
    return ENCODINGS[name]


def beats_of_tokens(miditok: MusicTokenizer) -> np.ndarray:
    """Count the quarters by which each single token of one of MidiTok's own encodings moves time on, `[V]`."""
    if isinstance(miditok, MMM):
        raise ValueError(
            "MMM writes one track after the other, so its tokens have no duration; use to_score(ids).end()."
        )
    beats = np.zeros(len(miditok.vocab))
    if "Bar_None" in miditok.vocab:
        beats[miditok.vocab["Bar_None"]] = 4
        return beats
    for token, id_ in miditok.vocab.items():
        kind, _, value = token.partition("_")
        if kind in ("TimeShift", "Rest"):
            whole, part, parts = map(int, value.split("."))
            beats[id_] = whole + part / parts
    return beats


def transpose_tokens(miditok: MusicTokenizer, ids: np.ndarray, semitones: int) -> np.ndarray:
    """Transpose the single tokens of one of MidiTok's own encodings, each by itself."""
    new_ids = ids.copy()
    for id_ in np.unique(ids).tolist() if semitones else ():
        kind, _, value = miditok[id_].partition("_")
        if kind not in PITCHED | UNPITCHED:
            raise ValueError(
                f"semitones is {semitones}; {miditok[id_]} of {type(miditok).__name__} is not transposed."
            )
        if kind in PITCHED:
            token = f"{kind}_{int(value) + semitones}"
            if token not in miditok.vocab:
                raise ValueError(f"semitones is {semitones}; {miditok[id_]} would leave the keys of the vocabulary.")
            new_ids[ids == id_] = miditok.vocab[token]
    return new_ids
