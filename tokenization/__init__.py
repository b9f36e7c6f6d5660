"""Notes to ids and back, and what an id means while they are generated."""

from transformers import AutoTokenizer

from .grammar import MaxSeconds, MusicGrammar
from .midi_streamer import MidiStreamer
from .tokenization_music_tx import MusicTxTokenizer, Performance

# Under the model type, for the configuration class is the model's own affair. AutoTokenizer finds the class by the name
# that stands in tokenizer_config.json, so no trust_remote_code is needed where this package is.
AutoTokenizer.register("music_tx", tokenizer_class=MusicTxTokenizer)
# save_pretrained writes the code beside the vocabulary, for those who do not have this package.
MusicTxTokenizer.register_for_auto_class()

__all__ = ["MaxSeconds", "MidiStreamer", "MusicGrammar", "MusicTxTokenizer", "Performance"]
