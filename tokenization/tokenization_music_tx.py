"""The paper's encoding as a MidiTok tokenization, and the face that AutoTokenizer knows.

`Performance` gives the events of `performance.py` their tokens and ids. `MusicTxTokenizer` reads files, pads,
truncates, makes tensors, saves and loads as every tokenizer of Transformers does, and leaves the music to it, or to
another of MidiTok's tokenizations, with a trained vocabulary or without.

What a saved folder holds is read by every later version: the description in `miditok.json` is loaded by the name of
its tokenization, and written again as it was read, byte for byte.
"""

import copy
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from miditok import (
    BEAT,
    MMM,
    REMI,
    TSD,
    Event,
    MIDILike,
    MusicTokenizer,
    PerTok,
    Structured,
    TokenizerConfig,
    TokSequence,
)
from miditok.utils import merge_tracks
from symusic import Note, Score
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils.versions import require_version

from .chorales import Chorales
from .performance import (
    MAX_SHIFT_STEPS,
    MAX_STEPS,
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

# Other versions fail later and say less.
require_version("transformers>=5.20,<6", 'Try: pip install "transformers>=5.20,<6"')

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


# The encodings of this house know the seconds of their tokens (`token_seconds`), how to transpose them (`augment`) and
# what music they can write. MidiTok's own do not.
OURS = (Performance, Chorales)

# What a description may name: encodings of one stream of tokens and one vocabulary.
ENCODINGS = {kind.__name__: kind for kind in (*OURS, BEAT, MIDILike, MMM, PerTok, REMI, Structured, TSD)}

# Stands before the first token of a bar or beat in a vocabulary that was trained on such words.
WORD = "▁"

# To WordPiece, a word that is too long is an unknown one, and gone.
NO_WORDS = 'A WordPiece vocabulary needs words that are bars or beats: encode_ids_split "bar" or "beat"; or train BPE.'

# How the tokens begin that a note begins with.
SOUNDING = ("NoteOn_", "Pitch", "DrumOn_")

# The types of MidiTok's tokens that name a key, and those that mean the same in every key. Others (chords by their
# root, key signatures, BEAT's pitches, some of which are intervals) are not transposed.
PITCHED = {"NoteOff", "NoteOn", "Pitch"}
UNPITCHED = {
    *("Bar", "Position", "TimeShift", "Rest", "Tempo", "TimeSig", "Duration", "MicroTiming", "Velocity", "Program"),
    *("Track", "Pedal", "PedalOff", "PitchBend", "PitchDrum", "DrumOn", "DrumOff"),
    *("PitchIntervalTime", "PitchIntervalChord"),
}


class TokenExpansion:
    """What the ids of a MidiTok tokenizer stand for: one token each, or several where its vocabulary was trained.

    Args:
        miditok: The tokenizer.

    Raises:
        ValueError: The vocabulary was trained in a way that loses music.
    """

    def __init__(self, miditok: MusicTokenizer):
        self.miditok = miditok
        vocabulary = miditok.vocab_model if miditok.is_trained else miditok.vocab
        written = sorted(vocabulary, key=vocabulary.get)
        if not miditok.is_trained:
            parts = [[token] for token in written]
        elif type(miditok._model.model).__name__ == "WordPiece" and miditok.config.encode_ids_split == "no":
            raise ValueError(NO_WORDS)
        else:
            parts = []
            for id_ in range(len(written)):
                expanded = TokSequence(ids=[id_], are_ids_encoded=True)
                miditok.decode_token_ids(expanded)
                parts.append(expanded.tokens)
        self.begins_word = np.array([miditok.is_trained and text.startswith(WORD) for text in written])
        # As text a learned token is the ones it stands for: Position_4+Pitch_60.
        self.tokens = [
            WORD * bool(begins) + "+".join(part) for part, begins in zip(parts, self.begins_word, strict=True)
        ]
        self.lengths = np.array([len(part) for part in parts])
        self._parts = np.array([miditok.vocab[token] for part in parts for token in part], dtype=np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths
        # A track's beginning and end are special to MMM, but part of the music.
        silent = {token for token in miditok.special_tokens if not token.startswith("Track_")}
        self._is_music = np.array([not silent.intersection(part) for part in parts])

    def is_music(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids stand for music, not for padding, a piece's beginning or end, or nothing at all.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            Bool, `[L]`.
        """
        is_known = (ids >= 0) & (ids < len(self.tokens))
        return is_known & self._is_music[np.where(is_known, ids, 0).astype(np.int64)]

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """Write out learned ids as the ids of single tokens.

        Args:
            ids: Ids of this vocabulary, `[L]`.

        Returns:
            Ids of the vocabulary before it was trained.
        """
        lengths = self.lengths[ids]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self._parts[np.repeat(self._starts[ids], lengths) + within]

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Find where bars or beats begin among the single tokens that `expand` writes, as far as the ids say."""
        ends = np.cumsum(self.lengths[ids])
        return (ends - self.lengths[ids])[self.begins_word[ids]]

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum up, for each id, a value of the single tokens it stands for.

        Args:
            values: A number for each single token.

        Returns:
            A number for each id, `[V]`.
        """
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return np.bincount(owner, values[self._parts], minlength=len(self.lengths))

    def merge(self, single: np.ndarray, word_starts: Iterable[int]) -> np.ndarray:
        """Write single tokens in the vocabulary, as it would write them itself: `expand` backwards.

        Args:
            single: Ids of single tokens, `[L]`.
            word_starts: Where a bar or beat begins among them; before the first, one goes on.

        Returns:
            Ids of this vocabulary.
        """
        if not self.miditok.is_trained:
            return single
        ids = []
        for index, word in enumerate(np.split(single, word_starts)):
            sequence = TokSequence(ids=word.tolist())
            self.miditok.complete_sequence(sequence, complete_bytes=True)
            # The model by itself, for the road that leads through MidiTok puts a beginning before every word.
            ids += [token.id for token in self.miditok._model.model.tokenize(WORD * (index > 0) + sequence.bytes)]
        return np.array(ids, dtype=np.int64)


class MusicTxTokenizer(PreTrainedTokenizer):
    """Music in, ids out, and back.

    Call it with a path, the bytes of a MIDI file, a `symusic.Score`, ids, or a list of these: it gives `input_ids`
    (BOS, then the music) and `attention_mask`, padded, truncated and as tensors if asked to. Melodic tracks are merged
    for the piano and drums are left out; the sustain pedal is folded into the notes; any tempo map is honoured, for
    time is seconds. `to_score` turns any ids back into a score. Batches are padded on the left, as `generate` wants.

    That is the paper's encoding. `from_miditok` puts the same face on a tokenizer of MidiTok's own, which then decides
    about pedals, tempos and drums by its configuration; tracks are merged only where it would make a stream of each.

    Args:
        miditok_file: Path of MidiTok's description of the encoding, as saved; None for the paper's.
        bos_token: Token before each piece.
        eos_token: Token after each piece of a corpus. The tokenizer does not add it, so that music can be continued.
        pad_token: Token that fills up a batch.
        **kwargs: What every tokenizer of Transformers takes.

    Raises:
        ValueError: The file describes no encoding that is known here.
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
        if miditok_file is None:
            self.miditok = Performance()
            self._description = json.dumps(self.miditok.to_dict(), indent=4)
        else:
            self._description = Path(miditok_file).read_text(encoding="utf-8")
            self.miditok = _encoding(json.loads(self._description).get("tokenization"))(params=miditok_file)
        self._expansion = TokenExpansion(self.miditok)
        self._vocab = {token: id_ for id_, token in enumerate(self._expansion.tokens)}
        # Where a copy was loaded from is not saved with it, or the second save would differ from the first.
        for origin in ("is_local", "local_files_only"):
            kwargs.pop(origin, None)
        kwargs["special_tokens_pattern"] = "bos"
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs)

    @classmethod
    def from_miditok(cls, miditok: MusicTokenizer, **kwargs) -> "MusicTxTokenizer":
        """Wrap a tokenizer of MidiTok's: REMI, TSD, MIDILike, Structured, PerTok, MMM or BEAT, trained or not.

        Args:
            miditok: The tokenizer; what is wrapped is a copy.
            **kwargs: As for the class.

        Returns:
            The wrapped tokenizer.

        Raises:
            ValueError: It has more than one vocabulary, is of an unknown kind, or would not be saved whole.
        """
        kind = type(miditok).__name__
        _encoding(kind)
        # By way of the file: what works now is then what works after loading.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, cls.vocab_files_names["miditok_file"])
            miditok.save(path)
            wrapped = cls(path, **kwargs)
        if wrapped.miditok != miditok:
            raise ValueError(f"MidiTok does not save all of this {kind}'s tokens; add them to the wrapped tokenizer.")
        return wrapped

    def train_new_from_iterator(
        self, music_iterator: Iterable, vocab_size: int, model: str = "BPE", **kwargs
    ) -> "MusicTxTokenizer":
        """Learn a vocabulary in which one id stands for several tokens that often follow each other.

        Args:
            music_iterator: Music as the tokenizer takes it: paths, bytes of MIDI files or scores.
            vocab_size: Number of tokens to reach; fewer if the music has no more to teach.
            model: "BPE", "Unigram" (not the same in every run) or "WordPiece" (only for encodings with bars).
            **kwargs: What MidiTok passes on to the trainer of the model.

        Returns:
            A new tokenizer of the same encoding. Tokens added to this one are not in it.

        Raises:
            ValueError: This vocabulary is trained already, too large for `vocab_size`, or the music cannot be read.
        """
        if self.miditok.is_trained:
            raise ValueError("This vocabulary is trained already; begin with one that is not.")
        if model not in ("BPE", "Unigram", "WordPiece"):
            raise ValueError(f"model is {model!r}; known are BPE, Unigram and WordPiece.")
        if model == "WordPiece" and self.miditok.config.encode_ids_split == "no":
            raise ValueError(NO_WORDS)
        if vocab_size <= self.vocab_size:
            raise ValueError(
                f"vocab_size ({vocab_size}) must be more than the {self.vocab_size} tokens there are untrained."
            )
        encoding = copy.deepcopy(self.miditok)
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for index, music in enumerate(music_iterator):
                paths.append(Path(folder, f"{index}.mid"))
                self._read(music).dump_midi(paths[-1])
            encoding.train(vocab_size, model=model, files_paths=paths, **kwargs)
        special = {name: getattr(self, name) for name in ("bos_token", "eos_token", "pad_token")}
        return self.from_miditok(encoding, padding_side=self.padding_side, **special)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones not counted."""
        return len(self._vocab)

    @property
    def has_events(self) -> bool:
        """Whether each id is one event of the paper's encoding, which is what a `MusicGrammar` knows."""
        return isinstance(self.miditok, Performance) and not self.miditok.is_trained

    @property
    def token_seconds(self) -> np.ndarray:
        """Seconds by which each id moves time on, `[V]`: in the paper's encoding 0.01 to 1 for a TimeShift.

        Encodings that count beats have their seconds at 120 quarters per minute, whatever tempo their tokens may name,
        and those that count bars move on by a whole bar of four quarters: enough to know about how long the music is.
        `to_score` knows it exactly.

        Raises:
            ValueError: The encoding writes one track after the other.
        """
        seconds = self.miditok.token_seconds if isinstance(self.miditok, OURS) else _beats(self.miditok) / 2
        return np.append(self._expansion.total(seconds), np.zeros(len(self) - self.vocab_size))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token, the added ones included."""
        return self._vocab | self._added_tokens_encoder

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._vocab:
            example = self._expansion.tokens[self.vocab_size // 2]
            raise ValueError(f"{token!r} is no token of this vocabulary; its tokens look like {example}.")
        return self._vocab[token]

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"{index} is no id of this vocabulary; its ids are 0 to {len(self) - 1}.")
        return self._expansion.tokens[index]

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
            if all(isinstance(id_, (int, np.integer)) for id_ in music):
                return np.asarray(music).tolist()
            return [self._to_ids(piece) for piece in music]
        score, kind = self._read(music), type(self.miditok).__name__
        try:
            sequences = self.miditok.encode(score)
        except ValueError as error:
            raise ValueError(f"{_name(music)}: {error}.") from None
        sequences = sequences if isinstance(sequences, list) else [sequences]
        ids = [id_ for sequence in sequences for id_ in sequence.ids]
        if not any(token.startswith(SOUNDING) for sequence in sequences for token in sequence.tokens):
            raise ValueError(f"{_name(music)}: no notes in it that {kind} can write.")
        if self.miditok.is_trained and not self._expansion.is_music(np.array(ids)).all():
            raise ValueError(f"{_name(music)}: it has what this trained vocabulary cannot write; train it on more.")
        return ids

    def _read(self, music) -> Score:
        """Return the score that the encoding will be given."""
        if isinstance(music, (str, os.PathLike)):
            midi = Path(music).read_bytes()
        elif isinstance(music, (bytes, bytearray)):
            midi = bytes(music)
        elif isinstance(music, Score):
            midi = None
        else:
            raise TypeError(f"{type(music).__name__} is no music; give a path, bytes, a symusic.Score, ids or a list.")
        try:
            score = music.to("tick") if midi is None else Score.from_midi(midi)
            return score if isinstance(self.miditok, OURS) else _prepare_score(score, self.miditok.one_token_stream)
        except RuntimeError as error:  # what symusic raises for broken files
            raise ValueError(f"{_name(music)}: not a MIDI file, or a broken one ({error}).") from None
        except ValueError as error:
            raise ValueError(f"{_name(music)}: {error}.") from None

    def to_score(self, ids) -> Score:
        """Turn ids into a score, whatever they are.

        A NoteOff of a key that is not down is ignored, a note without an end lasts as long as the piece, notes before
        the first Velocity sound at 64, and ids that stand for no event (PAD, BOS, EOS, added tokens, ids outside the
        vocabulary) are passed over.

        Args:
            ids: List, array or tensor of ids, `[L]`.

        Returns:
            A score of one piano track at 120 quarters per minute and 1000 ticks per second; of other encodings than
            the paper's, the score that MidiTok writes.

        Raises:
            ValueError: `ids` is more than one sequence.
        """
        ids = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
        if ids.ndim != 1:
            raise ValueError(f"ids have the shape {ids.shape}; to_score takes one sequence at a time.")
        ids = ids[self._expansion.is_music(ids)].astype(np.int64)
        sequence = TokSequence(ids=self._expansion.expand(ids).tolist())
        score = self.miditok.decode(sequence if self.miditok.one_token_stream else [sequence])
        # Out of order, BEAT's tokens tell of notes before the beginning.
        return score if score.start() >= 0 else score.clip(0, score.end())

    def augment(self, ids, semitones: int = 0, stretch: float = 1.0) -> np.ndarray:
        """Transpose a piece, or any slice of one, and stretch its time.

        Notes that began before the slice or end after it stay open. PAD, BOS and EOS stay at its ends.

        Args:
            ids: List, array or tensor of ids, `[L]`.
            semitones: Added to every pitch.
            stretch: Factor on every time; 1.05 makes the music 5 percent longer. Encodings that count beats leave it
                aside, for beats have no tempo.

        Returns:
            The new ids in canonical order; another tempo, or in a trained vocabulary another pitch, may need more or
            fewer of them.

        Raises:
            ValueError: A pitch would leave the keyboard, the stretch is not positive, the encoding holds more than
                pitches that a key would change, or there is more than one piece.
        """
        ids = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
        inside = np.flatnonzero(self._expansion.is_music(ids))
        if len(inside) == 0:
            return ids
        head, music, tail = np.split(ids, [inside[0], inside[-1] + 1])
        if len(music) != len(inside):
            raise ValueError("ids hold more than one piece; augment them one by one.")
        single, word_starts = self._expansion.expand(music), self._expansion.word_starts(music)
        if isinstance(self.miditok, OURS):
            single = self.miditok.augment(single, semitones, stretch)
        else:
            single = _transposed(self.miditok, single, semitones)
        return np.concatenate([head, self._expansion.merge(single, word_starts), tail]).astype(ids.dtype)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write MidiTok's description of the encoding, as it was read.

        Args:
            save_directory: An existing folder.
            filename_prefix: Put before the file name, with a hyphen.

        Returns:
            The path of the file.
        """
        name = self.vocab_files_names["miditok_file"]
        path = Path(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        path.write_text(self._description, encoding="utf-8", newline="")
        return (str(path),)


def _encoding(name: str) -> type[MusicTokenizer]:
    """Return the class of an encoding."""
    if name not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise ValueError(f"{name} is no encoding of one stream and one vocabulary that is known here: {known}.")
    return ENCODINGS[name]


def _name(music) -> str:
    """Call music something in an error."""
    if isinstance(music, (str, os.PathLike)):
        return os.fspath(music)
    return "the score" if isinstance(music, Score) else "the MIDI bytes"


def _prepare_score(score: Score, all_tracks: bool) -> Score:
    """Make sure that MidiTok can take a score, and merge its melodic tracks for the piano if it should have one.

    Args:
        score: A score in ticks.
        all_tracks: Whether it keeps a track for each instrument.

    Returns:
        A copy, the notes of each track in one order, which MidiTok keeps and which symusic's releases differ in.

    Raises:
        ValueError: The score has no such notes, or its numbers make no sense.
    """
    if score.ticks_per_quarter <= 0:
        raise ValueError(f"{score.ticks_per_quarter} ticks per quarter; at least 1 is needed")
    tracks = [track.copy() for track in score.tracks if track.notes and (all_tracks or not track.is_drum)]
    if not tracks:
        what = "only drums" if any(track.notes for track in score.tracks) else "no notes"
        raise ValueError(f"{what} in it; a piano needs at least one melodic note")
    hours = score.to("second").end() / 3600
    if hours * 3600 * STEPS_PER_SECOND > MAX_STEPS:
        raise ValueError(f"{hours:.0f} hours long; more than 24 mean that the file is broken")
    if not all_tracks:
        tracks = [merge_tracks(tracks)]
    for track in tracks:
        notes = track.notes.numpy()
        order = np.lexsort([notes[name] for name in ("velocity", "duration", "pitch", "time")])
        fields = (notes[name][order] for name in ("time", "duration", "pitch", "velocity"))
        track.notes = Note.from_numpy(*fields, "tick")
    score = score.copy()
    score.tracks = tracks
    return score


def _beats(miditok: MusicTokenizer) -> np.ndarray:
    """Count the quarters by which each single token of one of MidiTok's own encodings moves time on, `[V]`."""
    if isinstance(miditok, MMM):
        raise ValueError("MMM writes one track after the other; how long its music is, only to_score(ids) can tell.")
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


def _transposed(miditok: MusicTokenizer, ids: np.ndarray, semitones: int) -> np.ndarray:
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
