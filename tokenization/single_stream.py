"""The base class of this package's own MidiTok tokenizations: one stream of ids, without MidiTok's bars and beats.

A subclass defines its vocabulary (`_create_base_vocabulary`, `_create_token_types_graph`), `encode_score` and
`decode_ids`, and can then be saved, loaded and trained on as every tokenization of MidiTok.

Shape letters: L ids, V vocabulary.
"""

import os
from abc import abstractmethod

import numpy as np
from miditok import Event, MusicTokenizer, TokenizerConfig, TokSequence
from symusic import Score


class SingleStream(MusicTokenizer):
    """A MidiTok tokenization that writes all of a score as one stream of ids.

    Args:
        tokenizer_config: MidiTok's configuration, for other special tokens than PAD, BOS and EOS.
        params: Path of a file that `save` wrote.

    Attributes:
        token_seconds: Seconds by which each id advances the time, `[V]`.
    """

    token_seconds: np.ndarray

    def __init__(self, tokenizer_config: TokenizerConfig | None = None, params: str | os.PathLike | None = None):
        if tokenizer_config is None:
            tokenizer_config = TokenizerConfig(special_tokens=["PAD", "BOS", "EOS"])
        super().__init__(tokenizer_config, params)
        self._tokens = np.array(list(self.vocab), dtype=object)

    @abstractmethod
    def encode_score(self, score: Score) -> np.ndarray:
        """Return the ids of a score in ticks, `[L]`.

        Raises:
            ValueError: The encoding cannot write the score.
        """

    @abstractmethod
    def decode_ids(self, ids: np.ndarray) -> Score:
        """Return the score of any ids, `[L]`; special tokens and ids outside the vocabulary are ignored."""

    @abstractmethod
    def augment(self, ids: np.ndarray, semitones: int = 0, stretch: float = 1.0) -> np.ndarray:
        """Transpose any slice of a piece and stretch its time; see `MusicTxTokenizer.augment`."""

    def _tweak_config_before_creating_voc(self) -> None:
        # MidiTok merges all tracks into one stream only if programs are used.
        self.config.use_programs = True
        self.config.one_token_stream_for_programs = True
        self.config.encode_ids_split = "no"
        self.config.pitch_range = (0, 127)

    def _add_time_events(self, events: list[Event], time_division: int) -> list[Event]:
        # Abstract in MidiTok, and not needed: `encode_score` writes the time itself.
        return events

    def preprocess_score(self, score: Score) -> Score:
        """Return the score unchanged: MidiTok's preprocessing would resample it to beats and merge its tracks."""
        return score

    def _score_to_tokens(self, score: Score, attribute_controls_indexes: None = None) -> TokSequence:
        ids = self.encode_score(score)
        # Without a bar and a beat MidiTok would search the score for them.
        return TokSequence(ids=ids.tolist(), tokens=self._tokens[ids].tolist(), _ticks_bars=[0], _ticks_beats=[0])

    def _preprocess_tokseq_before_decoding(self, tokseq: TokSequence) -> None:
        if tokseq.are_ids_encoded:
            self.decode_token_ids(tokseq)
        if len(tokseq.ids) == 0:
            tokseq.ids = self._tokens_to_ids(tokseq.tokens)

    def _tokens_to_score(self, tokens: TokSequence, programs: None = None) -> Score:
        return self.decode_ids(np.array(tokens.ids, dtype=np.int64))
