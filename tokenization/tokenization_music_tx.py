"""The tokenizer with the interface of Transformers: MIDI in, ids out, and back.

`MusicTxTokenizer` reads files, pads, truncates, makes tensors, saves and loads as every tokenizer in Transformers.
The encoding is the paper's (`performance_encoding.py`) or another of MidiTok's, with a trained vocabulary or without.

Every later version reads what a saved folder holds: `miditok.json` describes the encoding by its name and is saved
again byte for byte.
"""

import copy
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from miditok import MusicTokenizer, TokSequence
from miditok.utils import merge_tracks
from symusic import Note, Score
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils.versions import require_version

from .encodings import SOUNDING, beats_of_tokens, find_encoding, transpose_tokens
from .midi_reader import read_midi
from .midi_reader import to_score as midi_to_score
from .performance import MAX_STEPS, STEPS_PER_SECOND
from .performance_encoding import Performance
from .pipeline_music_tx import CUSTOM_PIPELINES
from .single_stream import SingleStream
from .token_expansion import NO_WORDS, TokenExpansion

# Checked before anything fails in another version with a less clear error.
require_version("transformers>=5.20,<6", 'Try: pip install "transformers>=5.20,<6"')

# `generate(stop_strings=...)` encodes this word to see how the tokenizer joins tokens. It is no token, so it gets an
# id outside the vocabulary, for this purpose only.
STOP_STRINGS_PREFIX, STOP_STRINGS_PREFIX_ID = "abcdef", -(2**31)


class FileEncoding(BatchEncoding):
    """What a call with a path returns: it refuses to be the prompt of `pipeline("text-generation")`."""

    def __setitem__(self, name, value):
        # That pipeline takes its prompt for text, and would return the path with tokens appended.
        if name == "prompt_text":
            raise ValueError(f'{value!r} is a path; use pipeline("midi-generation"), or give tokens as text.')
        super().__setitem__(name, value)


class MusicTxTokenizer(PreTrainedTokenizer):
    """Music in, ids out, and back.

    Call it with a path, the bytes of a MIDI file, a `symusic.Score`, ids, text, or a list of these: it gives
    `input_ids` (BOS, then the music) and `attention_mask`, optionally padded, truncated and as tensors. Melodic
    tracks are merged for the piano and drums are left out; the sustain pedal is folded into the notes (for files, by
    the rules of `midi_reader.py`); any tempo map is honoured, for time is seconds. `to_score` turns any ids back into
    a score. Batches are padded on the left, as `generate` needs.

    A string is text if it is made of tokens of this vocabulary alone, as `decode` writes them: `"NoteOn_60
    TimeShift_50 NoteOff_60"`, the spaces optional. Any other string is a path, and a `pathlib.Path` always is. Text
    that begins with BOS gets no second one.

    That is the paper's encoding. `from_miditok` wraps one of MidiTok's own tokenizers, whose configuration decides
    about pedals, tempos and drums; tracks are merged only where it would make a stream of each.

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
            self.miditok = find_encoding(json.loads(self._description).get("tokenization"))(params=miditok_file)
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
        find_encoding(kind)
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
        """Whether each id is one event of the paper's encoding, as `MusicGrammar` needs it."""
        return isinstance(self.miditok, Performance) and not self.miditok.is_trained

    @property
    def attributes(self) -> tuple:
        """The attributes that control tokens state, see `controls.py`; empty for an encoding without them."""
        return getattr(self.miditok, "attributes", ())

    @property
    def control_spans(self) -> list[slice]:
        """For each of the attributes the ids of its values."""
        return getattr(self.miditok, "control_spans", [])

    @property
    def infill_ids(self):
        """The ids of the tokens for infilling, see `infilling.py`; None for an encoding without them."""
        return getattr(self.miditok, "infill_ids", None)

    @property
    def token_seconds(self) -> np.ndarray:
        """Seconds by which each id moves time on, `[V]`: in the paper's encoding 0.01 to 1 for a TimeShift.

        Encodings that count beats have their seconds at 120 quarters per minute, whatever tempo their tokens may name,
        and those that count bars advance by a whole bar of four quarters, so the sum is an estimate; the exact length
        is that of `to_score`.

        Raises:
            ValueError: The encoding writes one track after the other.
        """
        seconds = (
            self.miditok.token_seconds if isinstance(self.miditok, SingleStream) else beats_of_tokens(self.miditok) / 2
        )
        return np.append(self._expansion.total(seconds), np.zeros(len(self) - self.vocab_size))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token, the added ones included."""
        return self._vocab | self._added_tokens_encoder

    def tokenize(self, text, **kwargs) -> list[str]:
        """Return the tokens of a text, or of any other music that the tokenizer can be called with, without BOS.

        Args:
            text: As for a call, but not a list.
            **kwargs: As for every tokenizer of Transformers.

        Returns:
            The tokens.
        """
        tokens = self._split_text(text, **kwargs) if isinstance(text, str) else None
        return self.convert_ids_to_tokens(self._to_ids(text)) if tokens is None else tokens

    def _split_text(self, text: str, **kwargs) -> list[str] | None:
        """Return the tokens of a text; None if it has a part that is no token, and is a path therefore."""
        tokens = super().tokenize(text, **kwargs)
        known = (token in self._vocab or token in self._added_tokens_encoder for token in tokens)
        return tokens if tokens and all(known) else None

    def _tokenize(self, text: str) -> list[str]:
        tokens = []
        for word in text.split():
            tokens += [word] if word in self._vocab else self._split_word(word)
        return tokens

    def _split_word(self, word: str) -> list[str]:
        """Split tokens without spaces between them, as where a continuation was appended to its prompt."""
        longest = max(map(len, self._vocab))
        tokens, start = [], 0
        while start < len(word):
            parts = (word[start : start + length] for length in range(longest, 0, -1))
            token = next((part for part in parts if part in self._vocab), None)
            if token is None:
                return [word]
            tokens.append(token)
            start += len(token)
        return tokens

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._vocab:
            example = self._expansion.tokens[self.vocab_size // 2]
            raise ValueError(f"{token!r} is no token of this vocabulary; its tokens look like {example}.")
        return self._vocab[token]

    def _convert_id_to_token(self, index: int) -> str:
        if index == STOP_STRINGS_PREFIX_ID:
            return STOP_STRINGS_PREFIX
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"{index} is no id of this vocabulary; its ids are 0 to {len(self) - 1}.")
        return self._expansion.tokens[index]

    def _encode_plus(self, text, text_pair=None, **kwargs) -> BatchEncoding:
        # Music becomes ids here; padding, truncation and tensors are done by Transformers.
        if text_pair is not None:
            raise ValueError("MusicTxTokenizer takes no pairs of pieces; for a batch, give a list.")
        if kwargs.pop("is_split_into_words", False):
            text = [" ".join(words) for words in text] if isinstance(text[0], (list, tuple)) else " ".join(text)
        is_path = isinstance(text, str) and self._split_text(text) is None
        encoded = super()._encode_plus(self._to_ids(text, kwargs.get("add_special_tokens", True)), **kwargs)
        return FileEncoding(encoded.data) if is_path else encoded

    def _to_ids(self, music, adds_bos: bool = False) -> list:
        """Return the ids of a piece, or for a list of pieces the list of their ids.

        Args:
            music: As for a call.
            adds_bos: Whether BOS will be put before them, so that text which begins with it leaves it out.
        """
        if hasattr(music, "tolist"):  # an array or a tensor
            music = music.tolist()
        if isinstance(music, (list, tuple)):
            if not music:
                raise ValueError("An empty list holds no music; BOS alone is [tokenizer.bos_token_id].")
            if all(isinstance(id_, (int, np.integer)) for id_ in music):
                if not 0 <= min(music) <= max(music) < len(self):
                    wrong = next(id_ for id_ in music if not 0 <= id_ < len(self))
                    raise ValueError(f"{wrong} is no id of this vocabulary; its ids are 0 to {len(self) - 1}.")
                return np.asarray(music).tolist()
            return [self._to_ids(piece, adds_bos) for piece in music]
        if isinstance(music, str):
            tokens = self._split_text(music)
            if tokens is not None:
                begins = adds_bos and tokens[:1] == [self.bos_token]
                return self.convert_tokens_to_ids(tokens[1:] if begins else tokens)
            if not os.path.exists(music):  # noqa: PTH110 Path.exists raises for a text longer than a file name
                if music == STOP_STRINGS_PREFIX:
                    return [STOP_STRINGS_PREFIX_ID]
                if not music.strip():
                    raise ValueError("An empty string holds no music; BOS alone is [tokenizer.bos_token_id].")
                words = self._tokenize(music)
                if words[0] in self._vocab:
                    # Text with a mistake in it: name the word rather than a file of this name.
                    self.convert_tokens_to_ids(words)
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
        if not isinstance(music, (str, os.PathLike, bytes, bytearray, Score)):
            raise TypeError(f"{type(music).__name__} is no music; give a path, bytes, a symusic.Score, ids or a list.")
        try:
            # Other encodings than the paper's write pedals and other controllers themselves, if at all.
            score = (
                music.to("tick")
                if isinstance(music, Score)
                else midi_to_score(read_midi(music), pedal=isinstance(self.miditok, Performance))
            )
            return (
                score
                if isinstance(self.miditok, SingleStream)
                else _prepare_score(score, self.miditok.one_token_stream)
            )
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
        # BEAT's tokens in arbitrary order may decode to notes before the beginning.
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
        if isinstance(self.miditok, SingleStream):
            single = self.miditok.augment(single, semitones, stretch)
        else:
            single = transpose_tokens(self.miditok, single, semitones)
        return np.concatenate([head, self._expansion.merge(single, word_starts), tail]).astype(ids.dtype)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> tuple[str, ...]:
        """Save vocabulary, settings and code, that of `pipeline("midi-generation")` included.

        A causal model that has been saved to the same folder gets the pipeline's entry in its `config.json`.

        Args:
            save_directory: A folder, made if need be.
            *args: As for every tokenizer of Transformers.
            **kwargs: Likewise.

        Returns:
            The paths of the files.
        """
        path = Path(save_directory, "config.json")
        if path.is_file() and self._auto_class is not None:
            config = json.loads(path.read_text(encoding="utf-8"))
            is_causal = any(name.endswith("ForCausalLM") for name in config.get("architectures") or ())
            if is_causal and "custom_pipelines" not in config:
                config["custom_pipelines"] = CUSTOM_PIPELINES
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return super().save_pretrained(save_directory, *args, **kwargs)

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


def _name(music) -> str:
    """Return the name of a piece for error messages."""
    if isinstance(music, (str, os.PathLike)):
        return os.fspath(music)
    return "the score" if isinstance(music, Score) else "the MIDI bytes"


def _prepare_score(score: Score, all_tracks: bool) -> Score:
    """Check that MidiTok can encode a score, and merge its melodic tracks where the encoding has one track.

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
