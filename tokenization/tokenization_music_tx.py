"""The paper's encoding as a MidiTok tokenization, and the face that AutoTokenizer knows.

`Performance` gives every event of `performance.py` its token and its id. `MusicTxTokenizer` reads files, pads, truncates,
makes tensors, saves and loads as every tokenizer of Transformers does, and leaves the music to `Performance`.
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
    NUM_VELOCITIES,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITIES_PER_BIN,
    VELOCITY,
    Events,
    augment_events,
    events_to_notes,
    notes_to_events,
    read_notes,
    write_score,
)

# What an id means that is no event: padding, beginning, end.
NO_EVENT = -1


class Performance(MusicTokenizer):
    """The encoding of the Music Transformer as a MidiTok tokenization: one stream of 388 events in seconds.

    128 NoteOn, 128 NoteOff, TimeShift of 1 to 100 steps of 10 ms, 32 Velocity bins named by their centre and said only
    when they change, after MidiTok's special tokens (PAD, BOS and EOS unless the configuration asks for more). Time is
    seconds, so nothing is resampled to beats, bars are unknown and the other settings of the configuration rest.

    Args:
        tokenizer_config: MidiTok's configuration, for other special tokens.
        params: A file that `save` wrote.

    Source: Oore et al. (arXiv 1808.03715), section 3; Huang et al. (arXiv 1809.04281), section 4.2.
    """

    def __init__(self, tokenizer_config: TokenizerConfig | None = None, params: str | Path | None = None):
        if tokenizer_config is None:
            tokenizer_config = TokenizerConfig(special_tokens=["PAD", "BOS", "EOS"])
        super().__init__(tokenizer_config, params)
        self._tokens = np.array(list(self.vocab), dtype=object)
        self._kinds = np.full(len(self.vocab), NO_EVENT)
        self._values = np.zeros(len(self.vocab), dtype=np.int64)
        self._first_ids = np.empty(4, dtype=np.int64)
        # Each kind fills its ids without a gap.
        for kind, first_token, first_value, count in (
            (NOTE_ON, "NoteOn_0", 0, NUM_PITCHES),
            (NOTE_OFF, "NoteOff_0", 0, NUM_PITCHES),
            (TIME_SHIFT, "TimeShift_1", 1, MAX_SHIFT_STEPS),
            (VELOCITY, f"Velocity_{VELOCITIES_PER_BIN // 2}", 0, NUM_VELOCITIES),
        ):
            first_id = self.vocab[first_token]
            self._first_ids[kind] = first_id - first_value
            self._kinds[first_id : first_id + count] = kind
            self._values[first_id : first_id + count] = np.arange(first_value, first_value + count)
        self.token_seconds = np.where(self._kinds == TIME_SHIFT, self._values / STEPS_PER_SECOND, 0.0)

    def _tweak_config_before_creating_voc(self) -> None:
        # MidiTok makes one stream of all tracks only of configurations that use programs.
        self.config.use_programs = True
        self.config.one_token_stream_for_programs = True
        self.config.encode_ids_split = "no"
        self.config.pitch_range = (0, NUM_PITCHES - 1)
        self.config.num_velocities = NUM_VELOCITIES

    def _create_base_vocabulary(self) -> list[str]:
        return [
            *(f"NoteOn_{pitch}" for pitch in range(NUM_PITCHES)),
            *(f"NoteOff_{pitch}" for pitch in range(NUM_PITCHES)),
            *(f"TimeShift_{steps}" for steps in range(1, MAX_SHIFT_STEPS + 1)),
            *(f"Velocity_{bin_ * VELOCITIES_PER_BIN + VELOCITIES_PER_BIN // 2}" for bin_ in range(NUM_VELOCITIES)),
        ]

    def _create_token_types_graph(self) -> dict[str, set[str]]:
        return {
            "NoteOff": {"NoteOff", "NoteOn", "Velocity", "TimeShift"},
            "NoteOn": {"NoteOn", "Velocity", "TimeShift"},
            "TimeShift": {"NoteOff", "NoteOn", "Velocity", "TimeShift"},
            "Velocity": {"NoteOn"},
        }

    def _add_time_events(self, events: list[Event], time_division: int) -> list[Event]:
        return events  # MidiTok asks for it; here time is among the events from the start

    def preprocess_score(self, score: Score) -> Score:
        """Return the score as it is: its seconds need no resampling, and its tracks are merged as they are read."""
        return score

    def _score_to_tokens(self, score: Score, attribute_controls_indexes: None = None) -> TokSequence:
        ids = self.events_to_ids(notes_to_events(read_notes(score)))
        # The grid knows neither bars nor beats: one of each, or MidiTok would search the score for them.
        return TokSequence(ids=ids.tolist(), tokens=self._tokens[ids].tolist(), _ticks_bars=[0], _ticks_beats=[0])

    def _preprocess_tokseq_before_decoding(self, tokseq: TokSequence) -> None:
        if tokseq.are_ids_encoded:
            self.decode_token_ids(tokseq)
        if len(tokseq.ids) == 0:
            tokseq.ids = self._tokens_to_ids(tokseq.tokens)

    def _tokens_to_score(self, tokens: TokSequence, programs: None = None) -> Score:
        return write_score(*events_to_notes(self.ids_to_events(np.asarray(tokens.ids, dtype=np.int64))))

    def events_to_ids(self, events: Events) -> np.ndarray:
        """Give every event its id, `[L]`."""
        return self._first_ids[events.kind] + events.value

    def is_event(self, ids: np.ndarray) -> np.ndarray:
        """Say of every id whether it stands for an event, `[L]`; special ids and those outside the vocabulary do not."""
        known = (ids >= 0) & (ids < len(self._kinds))
        return known & (self._kinds[np.where(known, ids, 0).astype(np.int64)] != NO_EVENT)

    def ids_to_events(self, ids: np.ndarray) -> Events:
        """Return the events of ids `[L]`, passing over the ids that stand for none."""
        ids = ids[self.is_event(ids)]
        return Events(self._kinds[ids], self._values[ids])


class MusicTxTokenizer(PreTrainedTokenizer):
    """Music in, ids out, and back.

    `tokenizer(midi)` takes a path, the bytes of a MIDI file, a `symusic.Score`, ids, or a list of any of them, and gives
    `input_ids` (BOS, then the music) and `attention_mask`, padded, truncated and as tensors as asked for. Melodic tracks
    are merged for the piano and drums are left out; the sustain pedal is folded into the notes; any tempo map is
    honoured. `to_score(ids)` gives a score for any ids whatever.

    Padding is on the left, where `generate` wants it.

    Args:
        miditok_file: MidiTok's description of the encoding, as `save_pretrained` writes it; the paper's encoding if None.
        bos_token: Token before every piece.
        eos_token: Token after every piece in the corpora; the tokenizer does not add it.
        pad_token: Token that fills up a batch.
        kwargs: What every tokenizer of Transformers takes.
    """

    # Not tokenizer.json, MidiTok's own default: that name belongs to the fast tokenizers.
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
            raise ValueError(
                f"{miditok_file} holds a trained vocabulary; only MidiTok's Performance reads those so far."
            )
        # Where this copy was loaded from; saved, it would make the second save differ from the first.
        for origin in ("is_local", "local_files_only"):
            kwargs.pop(origin, None)
        kwargs["special_tokens_pattern"] = "bos"
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, without added ones."""
        return len(self.miditok)

    @property
    def token_seconds(self) -> np.ndarray:
        """Seconds by which each id moves time on, `[V]`: 0.01 to 1 for a TimeShift, 0 for all others."""
        return np.append(self.miditok.token_seconds, np.zeros(len(self) - self.vocab_size))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token, added ones included."""
        return self.miditok.vocab | self._added_tokens_encoder

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self.miditok.vocab:
            raise ValueError(f"{token!r} is no token of this vocabulary; tokens look like NoteOn_60 or TimeShift_25.")
        return self.miditok.vocab[token]

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"{index} is no id of this vocabulary; ids are 0 to {len(self) - 1}.")
        return self.miditok[index]

    def _encode_plus(self, text, text_pair=None, **kwargs) -> BatchEncoding:
        # Music becomes ids; padding, truncation and tensors are the library's.
        if text_pair is not None:
            raise ValueError("MusicTxTokenizer takes no pairs; for a batch give a list of pieces.")
        return super()._encode_plus(self._to_ids(text), **kwargs)

    def _to_ids(self, music) -> list:
        """Return the ids of a piece, or of each piece of a list."""
        if hasattr(music, "tolist"):  # an array or a tensor of ids
            music = music.tolist()
        if isinstance(music, (list, tuple)):
            if not music:
                raise ValueError("an empty list holds no music; BOS alone is [tokenizer.bos_token_id].")
            if isinstance(music[0], (int, np.integer)):
                return np.asarray(music).tolist()
            return [self._to_ids(piece) for piece in music]
        if isinstance(music, (str, os.PathLike)):
            name, music = str(music), Path(music).read_bytes()
        elif isinstance(music, (bytes, bytearray, Score)):
            name = "the score" if isinstance(music, Score) else "the MIDI bytes"
        else:
            raise TypeError(f"{type(music).__name__} is no music; give a path, bytes, a symusic.Score, ids or a list.")
        if not isinstance(music, Score):
            try:
                music = Score.from_midi(bytes(music))
            except RuntimeError as error:
                raise ValueError(f"{name}: not a MIDI file, or a broken one ({error}).") from None
        try:
            return self.miditok.encode(music.to("tick")).ids
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from None

    def to_score(self, ids) -> Score:
        """Turn ids into a score, whatever they are.

        A key that comes up without having gone down is ignored, a note that never ends lasts until the end of the piece,
        notes before the first velocity sound at 64, and ids that stand for no event (PAD, BOS, EOS, added tokens, ids
        outside the vocabulary) are passed over.

        Args:
            ids: List, array or tensor of ids, `[L]`.

        Returns:
            A score of one piano track at 120 quarters per minute and 1000 ticks per second.

        Raises:
            ValueError: There are several sequences in `ids`.
        """
        ids = np.asarray(ids.tolist() if hasattr(ids, "tolist") else ids)
        if ids.ndim != 1:
            raise ValueError(f"ids have the shape {ids.shape}; to_score takes one sequence at a time.")
        ids = np.clip(ids, -1, self.vocab_size).astype(np.int64)  # Python's integers have no upper end
        return self.miditok.decode(TokSequence(ids=ids))

    def augment(self, ids, semitones: int = 0, stretch: float = 1.0) -> np.ndarray:
        """Transpose a slice of a piece and stretch its time.

        The slice may begin and end anywhere: notes that began before it or end after it stay open. PAD, BOS and EOS stay
        at its ends.

        Args:
            ids: List, array or tensor of ids, `[L]`.
            semitones: Added to every pitch.
            stretch: Factor on every time; 1.05 makes the music 5 percent longer.

        Returns:
            The new ids in canonical order, in the dtype of an array given. Their number may differ.

        Raises:
            ValueError: A pitch would leave 0..127, the stretch is not positive, or there are several pieces in `ids`.
        """
        ids = np.asarray(ids)
        is_event = self.miditok.is_event(ids)
        inside = np.flatnonzero(is_event)
        if len(inside) == 0:
            return ids.copy()
        head, music, tail = np.split(ids, [inside[0], inside[-1] + 1])
        if len(music) != len(inside):
            raise ValueError("ids hold more than one piece; augment them one by one.")
        events = augment_events(self.miditok.ids_to_events(music), semitones, stretch)
        return np.concatenate([head, self.miditok.events_to_ids(events), tail]).astype(ids.dtype)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write MidiTok's description of the encoding.

        Args:
            save_directory: An existing folder.
            filename_prefix: Written before the file name, with a hyphen.

        Returns:
            The path of the file.
        """
        name = self.vocab_files_names["miditok_file"]
        path = Path(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        self.miditok.save(path)
        return (str(path),)
