"""MIDI to ids and back, and the generation of music from them."""

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY

from .control_feedback import ControlFeedback
from .forgotten_keys import ForgottenKeys
from .grammar import PIANO, MaxSeconds, MusicGrammar
from .midi_streamer import MidiStreamer
from .music_generation import first_seconds, generate_music, piano_logits_processors
from .performance_encoding import Performance, PerformanceWithControls
from .pipeline_music_tx import TASK, MidiGenerationPipeline
from .repetition import LoopBreaker
from .tokenization_music_tx import MusicTxTokenizer

# Under the model type, for the configuration class is the model's own. AutoTokenizer finds the tokenizer by the name
# in tokenizer_config.json, so that loading needs no trust_remote_code where this package is installed.
AutoTokenizer.register("music_tx", tokenizer_class=MusicTxTokenizer)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=MidiGenerationPipeline, pt_model=AutoModelForCausalLM)
# Saving writes the code beside the vocabulary, for those who do not have this package.
MusicTxTokenizer.register_for_auto_class()

__all__ = [
    "PIANO",
    "ControlFeedback",
    "ForgottenKeys",
    "LoopBreaker",
    "MaxSeconds",
    "MidiGenerationPipeline",
    "MidiStreamer",
    "MusicGrammar",
    "MusicTxTokenizer",
    "Performance",
    "PerformanceWithControls",
    "first_seconds",
    "generate_music",
    "piano_logits_processors",
]
