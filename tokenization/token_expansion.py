"""Trained vocabularies: what learned ids stand for, and back.

Shape letters: L ids, V vocabulary.
"""

from collections.abc import Iterable

import numpy as np
from miditok import MusicTokenizer, TokSequence

# Marks the first token of a bar or beat in a vocabulary trained on words of bars or beats.
WORD = "▁"

# WordPiece replaces a word that is too long by an unknown token, which would lose the music.
NO_WORDS = 'A WordPiece vocabulary needs words that are bars or beats: encode_ids_split "bar" or "beat"; or train BPE.'


class TokenExpansion:
    """The single tokens of each id of a MidiTok tokenizer: one each, or several where the vocabulary was trained.

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
        # The text of a learned token joins its single tokens: Position_4+Pitch_60.
        self.tokens = [
            WORD * bool(begins) + "+".join(part) for part, begins in zip(parts, self.begins_word, strict=True)
        ]
        self.lengths = np.array([len(part) for part in parts])
        self._parts = np.array([miditok.vocab[token] for part in parts for token in part], dtype=np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths
        # MMM's special tokens for the beginning and end of a track are part of the music.
        silent = {token for token in miditok.special_tokens if not token.startswith("Track_")}
        self._is_music = np.array([not silent.intersection(part) for part in parts])

    def is_music(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids are music: not PAD, BOS or EOS, and inside the vocabulary.

        Args:
            ids: Any integers, `[L]`.

        Returns:
            Bool, `[L]`.
        """
        is_known = (ids >= 0) & (ids < len(self.tokens))
        return is_known & self._is_music[np.where(is_known, ids, 0).astype(np.int64)]

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """Replace learned ids by the ids of their single tokens.

        Args:
            ids: Ids of this vocabulary, `[L]`.

        Returns:
            Ids of the vocabulary before it was trained.
        """
        lengths = self.lengths[ids]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self._parts[np.repeat(self._starts[ids], lengths) + within]

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Return the positions, among the single tokens of `expand`, at which the ids mark a bar or beat."""
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
        """Replace single tokens by learned ids, as the trained model does: the inverse of `expand`.

        Args:
            single: Ids of single tokens, `[L]`.
            word_starts: Positions at which a bar or beat begins; the tokens before the first continue one.

        Returns:
            Ids of this vocabulary.
        """
        if not self.miditok.is_trained:
            return single
        ids = []
        for index, word in enumerate(np.split(single, word_starts)):
            sequence = TokSequence(ids=word.tolist())
            self.miditok.complete_sequence(sequence, complete_bytes=True)
            # The bare model: MidiTok's own encoding would mark the beginning of every word.
            ids += [token.id for token in self.miditok._model.model.tokenize(WORD * (index > 0) + sequence.bytes)]
        return np.array(ids, dtype=np.int64)
