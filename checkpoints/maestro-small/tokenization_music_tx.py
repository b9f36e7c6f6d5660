"""The paper's encoding as a MidiTok tokenization, and the face that AutoTokenizer knows.

`Performance` gives the events of `performance.py` their tokens and ids. `MusicTxTokenizer` reads files, pads,
truncates, makes tensors, saves and loads as every tokenizer of Transformers does, and leaves the music to it.
"""

import os
from pathlib import Path

import numpy as np
from miditok import Event, MusicTokenizer, TokenizerConfig, TokSequence
from symusic import Score
from transformers import BatchEncoding, PreTrainedTokenizer

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

# The kind of an id that stands for no event: padding, beginning, end.
NO_EVENT = -1


class Performance(MusicTokenizer):
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
        if tokenizer_config is None:
            tokenizer_config = TokenizerConfig(special_tokens=["PAD", "BOS", "EOS"])
        super().__init__(tokenizer_config, params)
        self._tokens = np.array(list(self.vocab), dtype=object)
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
        # Only with programs does MidiTok make one stream of all tracks.
        self.config.use_programs = True
        self.config.one_token_stream_for_programs = True
        self.config.encode_ids_split = "no"
        self.config.pitch_range = (0, NUM_PITCHES - 1)
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

    def _add_time_events(self, events: list[Event], time_division: int) -> list[Event]:
        # MidiTok asks every tokenization for this step; here time is among the events from the start.
        return events

    def preprocess_score(self, score: Score) -> Score:
        """Return the score as it is: MidiTok's preprocessing would resample it to beats.

        Args:
            score: A score in ticks.

        Returns:
            The same score.
        """
        return score

    def _score_to_tokens(self, score: Score, attribute_controls_indexes: None = None) -> TokSequence:
        ids = self.events_to_ids(notes_to_events(read_notes(score)))
        # One bar and one beat: without any, MidiTok would search the score for them.
        return TokSequence(ids=ids.tolist(), tokens=self._tokens[ids].tolist(), _ticks_bars=[0], _ticks_beats=[0])

    def _preprocess_tokseq_before_decoding(self, tokseq: TokSequence) -> None:
        if tokseq.are_ids_encoded:
            self.decode_token_ids(tokseq)
        if len(tokseq.ids) == 0:
            tokseq.ids = self._tokens_to_ids(tokseq.tokens)

    def _tokens_to_score(self, tokens: TokSequence, programs: None = None) -> Score:
        return write_score(*events_to_notes(self.ids_to_events(np.array(tokens.ids, dtype=np.int64))))

    def events_to_ids(self, events: Events) -> np.ndarray:
        """Return the ids of events.

        Args:
            events: Any events, `[L]`.

        Returns:
            The id of each, `[L]`.
        """
        return self._id_of_value_0[events.kind] + events.value

    def is_event(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids stand for an event.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            False for special tokens and for what is outside the vocabulary, `[L]`.
        """
        is_known = (ids >= 0) & (ids < len(self._kinds))
        return self._kinds[np.where(is_known, ids, self.pad_token_id).astype(np.int64)] != NO_EVENT

    def ids_to_events(self, ids: np.ndarray) -> Events:
        """Return the events of ids.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            The events, as many as there are ids that stand for one.
        """
        ids = ids[self.is_event(ids)]
        return Events(self._kinds[ids], self._values[ids])


class MusicTxTokenizer(PreTrainedTokenizer):
    """Music in, ids out, and back.

    Call it with a path, the bytes of a MIDI file, a `symusic.Score`, ids, or a list of these: it gives `input_ids`
    (BOS, then the music) and `attention_mask`, padded, truncated and as tensors if asked to. Melodic tracks are merged
    for the piano and drums are left out; the sustain pedal is folded into the notes; any tempo map is honoured, for
    time is seconds. `to_score` turns any ids back into a score. Batches are padded on the left, as `generate` wants.

    Args:
        miditok_file: Path of MidiTok's description of the encoding, as saved; None for the paper's.
        bos_token: Token before each piece.
        eos_token: Token after each piece of a corpus. The tokenizer does not add it, so that music can be continued.
        pad_token: Token that fills up a batch.
        **kwargs: What every tokenizer of Transformers takes.
    """

    # MidiTok's own choice, tokenizer.json, is the file of the fast tokenizers.
    vocab_files_names = {"miditok_file": "miditok.json"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        miditok_file: str | os.PathLike | None = None,
        bos_token: str = "BOS_None",
        eos_token: str = "EOS_None",
        pad_token: str = "PAD_None",
        **kwargs,
    ):
        self.miditok = Performance(params=miditok_file)
        if self.miditok.is_trained:
            raise ValueError(f"{miditok_file} holds a trained vocabulary; only MidiTok itself can use it so far.")
        # Where a copy was loaded from is not saved with it, or the second save would differ from the first.
        for origin in ("is_local", "local_files_only"):
            kwargs.pop(origin, None)
        kwargs["special_tokens_pattern"] = "bos"
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones not counted."""
        return len(self.miditok)

    @property
    def token_seconds(self) -> np.ndarray:
        """Seconds by which each id moves time on, `[V]`: 0.01 to 1 for a TimeShift, 0 for all others."""
        return np.append(self.miditok.token_seconds, np.zeros(len(self) - self.vocab_size))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token, the added ones included."""
        return self.miditok.vocab | self._added_tokens_encoder

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self.miditok.vocab:
            raise ValueError(
                f"{token!r} is no token of this vocabulary; its tokens look like NoteOn_60, TimeShift_25."
            )
        return self.miditok.vocab[token]

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"{index} is no id of this vocabulary; its ids are 0 to {len(self) - 1}.")
        return self.miditok[index]

    def _encode_plus(self, text, text_pair=None, **kwargs) -> BatchEncoding:
        # Ours is to turn music into ids; padding, truncation and tensors are the library's.
        if text_pair is not None:
            raise ValueError("MusicTxTokenizer takes no pairs of pieces; for a batch, give a list.")
        return super()._encode_plus(self._to_ids(text), **kwargs)

    def _to_ids(self, music) -> list:
        """Return the ids of a piece, or for a list of pieces the list of their ids."""
        if hasattr(music, "tolist"):  # an array or a tensor
            music = music.tolist()
        if isinstance(music, (list, tuple)):
            if not music:
                raise ValueError("An empty list holds no music; BOS alone is [tokenizer.bos_token_id].")
            if isinstance(music[0], (int, np.integer)):
                return np.asarray(music).tolist()
            return [self._to_ids(piece) for piece in music]

        if isinstance(music, (str, os.PathLike)):
            name, music = os.fspath(music), Path(music).read_bytes()
        elif isinstance(music, (bytes, bytearray)):
            name, music = "the MIDI bytes", bytes(music)
        elif isinstance(music, Score):
            name = "the score"
        else:
            raise TypeError(f"{type(music).__name__} is no music; give a path, bytes, a symusic.Score, ids or a list.")
        try:
            score = Score.from_midi(music) if isinstance(music, bytes) else music.to("tick")
            return self.miditok.encode(score).ids
        except RuntimeError as error:  # what symusic raises for broken files
            raise ValueError(f"{name}: not a MIDI file, or a broken one ({error}).") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from None

    def to_score(self, ids) -> Score:
        """Turn ids into a score, whatever they are.

        A NoteOff of a key that is not down is ignored, a note without an end lasts as long as the piece, notes before
        the first Velocity sound at 64, and ids that stand for no event (PAD, BOS, EOS, added tokens, ids outside the
        vocabulary) are passed over.

        Args:
            ids: List, array or tensor of ids, `[L]`.

        Returns:
            A score of one piano track at 120 quarters per minute and 1000 ticks per second.

        Raises:
            ValueError: `ids` is more than one sequence.
        """
        ids = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
        if ids.ndim != 1:
            raise ValueError(f"ids have the shape {ids.shape}; to_score takes one sequence at a time.")
        # Integers of any size can be given, but not kept.
        ids = np.clip(ids, -1, self.vocab_size).astype(np.int64)
        return self.miditok.decode(TokSequence(ids=ids))

    def augment(self, ids, semitones: int = 0, stretch: float = 1.0) -> np.ndarray:
        """Transpose a piece, or any slice of one, and stretch its time.

        Notes that began before the slice or end after it stay open. PAD, BOS and EOS stay at its ends.

        Args:
            ids: List, array or tensor of ids, `[L]`.
            semitones: Added to every pitch.
            stretch: Factor on every time; 1.05 makes the music 5 percent longer.

        Returns:
            The new ids in canonical order; another tempo may need more or fewer of them.

        Raises:
            ValueError: A pitch would leave 0..127, the stretch is not positive, or there is more than one piece.
        """
        ids = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
        inside = np.flatnonzero(self.miditok.is_event(ids))
        if len(inside) == 0:
            return ids
        head, music, tail = np.split(ids, [inside[0], inside[-1] + 1])
        if len(music) != len(inside):
            raise ValueError("ids hold more than one piece; augment them one by one.")
        events = augment_events(self.miditok.ids_to_events(music), semitones, stretch)
        return np.concatenate([head, self.miditok.events_to_ids(events), tail]).astype(ids.dtype)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write MidiTok's description of the encoding.

        Args:
            save_directory: An existing folder.
            filename_prefix: Put before the file name, with a hyphen.

        Returns:
            The path of the file.
        """
        name = self.vocab_files_names["miditok_file"]
        path = Path(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        self.miditok.save(path)
        return (str(path),)
