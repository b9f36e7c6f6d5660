"""The paper's encoding as a MidiTok tokenization: ids for the events of `performance.py`.

Shape letters: L ids or events, V vocabulary.

Source: Oore et al., "This Time with Feeling" (arXiv 1808.03715), section 3; Huang et al., "Music Transformer"
(arXiv 1809.04281), appendix A.2.
"""

import os
from collections.abc import Callable

import numpy as np
from miditok import TokenizerConfig
from symusic import Score

from .controls import COMPOSERS, SEGMENT_STEPS, UNSTATED, make_attributes, measure_segments
from .infilling import INFILL_TOKENS, InfillIds, join_infilled
from .performance import (
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    NOTE_ON,
    NUM_PITCHES,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VELOCITY_OF_BIN,
    Events,
    augment_events,
    events_to_notes,
    notes_to_events,
    read_notes,
    write_score,
)
from .single_stream import SingleStream

# The kind of an id that is no event: PAD, BOS, EOS.
NO_EVENT = -1


class Performance(SingleStream):
    """The paper's encoding as a MidiTok tokenization: one stream of 388 events.

    NoteOn_0..127, NoteOff_0..127, TimeShift_1..100 in steps of 10 ms, and 32 Velocity tokens named by the centre of
    their bin, after MidiTok's special tokens (PAD, BOS and EOS, unless the configuration names others). Time is
    seconds: scores are not resampled, there are no bars, and MidiTok's settings of beats and resolutions play no part.

    Args:
        tokenizer_config: MidiTok's configuration, for other special tokens.
        params: Path of a file that `save` wrote.

    Source: Oore et al. (arXiv 1808.03715), section 3; Huang et al. (arXiv 1809.04281), appendix A.2.
    """

    def __init__(self, tokenizer_config: TokenizerConfig | None = None, params: str | os.PathLike | None = None):
        super().__init__(tokenizer_config, params)
        self._kinds = np.full(len(self.vocab), NO_EVENT)
        self._values = np.zeros(len(self.vocab), dtype=np.int64)
        self._id_of_value_0 = np.empty(4, dtype=np.int64)
        # The tokens of a kind follow each other in the vocabulary.
        for kind, token, value, count in (
            (NOTE_ON, "NoteOn_0", 0, NUM_PITCHES),
            (NOTE_OFF, "NoteOff_0", 0, NUM_PITCHES),
            (TIME_SHIFT, "TimeShift_1", 1, MAX_SHIFT_STEPS),
            (VELOCITY, f"Velocity_{VELOCITY_OF_BIN[0]}", 0, len(VELOCITY_OF_BIN)),
        ):
            first = self.vocab[token]
            self._kinds[first : first + count] = kind
            self._values[first : first + count] = np.arange(value, value + count)
            self._id_of_value_0[kind] = first - value
        # Seconds by which each id moves time on, [V].
        self.token_seconds = np.where(self._kinds == TIME_SHIFT, self._values / STEPS_PER_SECOND, 0.0)

    def _tweak_config_before_creating_voc(self) -> None:
        super()._tweak_config_before_creating_voc()
        self.config.num_velocities = len(VELOCITY_OF_BIN)

    def _create_base_vocabulary(self) -> list[str]:
        return [
            *(f"NoteOn_{pitch}" for pitch in range(NUM_PITCHES)),
            *(f"NoteOff_{pitch}" for pitch in range(NUM_PITCHES)),
            *(f"TimeShift_{steps}" for steps in range(1, MAX_SHIFT_STEPS + 1)),
            *(f"Velocity_{velocity}" for velocity in VELOCITY_OF_BIN),
        ]

    def _create_token_types_graph(self) -> dict[str, set[str]]:
        return {
            "NoteOff": {"NoteOff", "NoteOn", "TimeShift", "Velocity"},
            "NoteOn": {"NoteOn", "TimeShift", "Velocity"},
            "TimeShift": {"NoteOff", "NoteOn", "TimeShift", "Velocity"},
            "Velocity": {"NoteOn"},
        }

    def encode_score(self, score: Score) -> np.ndarray:
        """Return the ids of a score in ticks, `[L]`; see `performance.read_notes` for what a piano can play of it."""
        return self.events_to_ids(notes_to_events(read_notes(score)))

    def decode_ids(self, ids: np.ndarray) -> Score:
        """Return the score of any ids, `[L]`."""
        return write_score(*events_to_notes(self.ids_to_events(ids)))

    def events_to_ids(self, events: Events) -> np.ndarray:
        """Return the ids of events.

        Args:
            events: Any events, `[L]`.

        Returns:
            The id of each, `[L]`.
        """
        return self._id_of_value_0[events.kind] + events.value

    def kinds_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the kinds of ids.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            A kind of event, or NO_EVENT for other tokens and for what is outside the vocabulary, `[L]`.
        """
        is_known = (ids >= 0) & (ids < len(self._kinds))
        return self._kinds[np.where(is_known, ids, self.pad_token_id).astype(np.int64)]

    def ids_to_events(self, ids: np.ndarray) -> Events:
        """Return the events of ids.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            The events, as many as there are ids that stand for one.
        """
        ids = ids[self.kinds_of(ids) != NO_EVENT]
        return Events(self._kinds[ids], self._values[ids])

    def augment(self, ids: np.ndarray, semitones: int, stretch: float) -> np.ndarray:
        """Transpose any slice of a piece and stretch its time; see `MusicTxTokenizer.augment`.

        Args:
            ids: Ids of events, `[L]`.
            semitones: Added to every pitch.
            stretch: Factor on every time.

        Returns:
            The ids of the new slice.
        """
        return self.events_to_ids(augment_events(self.ids_to_events(ids), semitones, stretch))


class PerformanceWithControls(Performance):
    """The paper's encoding with tokens behind it that state controls, and three for infilling.

    The ids of the events are those of `Performance`. `controls.py` says what the controls mean, `infilling.py` how a
    piece with a gap is written. Scores are encoded without either: `insert_controls` and `infill_sequence` add them.

    Args:
        tokenizer_config: MidiTok's configuration; `composers` in it names the composers that have a token.
        params: Path of a file that `save` wrote.

    Attributes:
        attributes: The attributes of a segment, `[A]`.
        control_spans: For each attribute the ids of its values.
    """

    def __init__(self, tokenizer_config: TokenizerConfig | None = None, params: str | os.PathLike | None = None):
        super().__init__(tokenizer_config, params)
        first = [self.vocab[attribute.tokens[0]] for attribute in self.attributes]
        self.control_spans = [
            slice(start, start + len(attribute.values))
            for start, attribute in zip(first, self.attributes, strict=True)
        ]
        self.infill_ids = InfillIds(*(self.vocab[token] for token in INFILL_TOKENS))

    def _tweak_config_before_creating_voc(self) -> None:
        super()._tweak_config_before_creating_voc()
        composers = self.config.additional_params.setdefault("composers", list(COMPOSERS))
        self.attributes = make_attributes(composers)

    def _create_base_vocabulary(self) -> list[str]:
        controls = [token for attribute in self.attributes for token in attribute.tokens]
        return [*super()._create_base_vocabulary(), *controls, *INFILL_TOKENS]

    def _create_token_types_graph(self) -> dict[str, set[str]]:
        graph = super()._create_token_types_graph()
        events, names = {"NoteOff", "NoteOn", "Velocity"}, [attribute.name for attribute in self.attributes]
        graph["TimeShift"] = graph["TimeShift"] | {*names, "Infill"}
        for index, name in enumerate(names):
            graph[name] = {*events, *names[index + 1 :]}
        graph["Infill"] = {*events, "TimeShift", *names}
        return graph

    def ids_to_events(self, ids: np.ndarray) -> Events:
        """Return the events of ids; those of an infilled piece in the order in which they sound.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            The events, as many as there are ids that stand for one and for no gap.
        """
        return super().ids_to_events(join_infilled(ids, self))

    def insert_controls(
        self,
        ids: np.ndarray,
        composer: int = UNSTATED,
        is_stated: Callable[[tuple[int, int]], np.ndarray] | None = None,
    ) -> np.ndarray:
        """State the controls of music at the first event of each segment.

        Args:
            ids: A piece or a slice of one, without controls, `[L]`.
            composer: Index of the composer, if one is to be stated.
            is_stated: Returns, for the shape of the segments' attributes, which are stated, bool, `[S, A]`; all
                that are known unless given.

        Returns:
            The ids with controls, `[L + the number of controls]`.
        """
        steps = np.rint(self.token_seconds[ids] * STEPS_PER_SECOND).astype(np.int64).cumsum()  # [L]
        notes, length = events_to_notes(Performance.ids_to_events(self, ids))
        values = measure_segments(notes, length, self.vocab["EOS_None"] in ids[-1:])  # [S, A - 1]
        values = np.column_stack([np.full(len(values), composer), values])  # [S, A]
        if is_stated is not None:
            values = np.where(is_stated(values.shape), values, UNSTATED)

        kinds = self.kinds_of(ids)
        events = np.flatnonzero((kinds != NO_EVENT) & (kinds != TIME_SHIFT))
        segments, first = np.unique(steps[events] // SEGMENT_STEPS, return_index=True)
        segment, attribute = np.nonzero(values[segments] != UNSTATED)
        starts = np.array([span.start for span in self.control_spans])
        controls = starts[attribute] + values[segments][segment, attribute]
        return np.insert(ids, events[first][segment], controls)
