"""Music Transformer as a Transformers model; importing this package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_music_tx import MusicTxConfig
from .modeling_music_tx import (
    MusicTxForCausalLM,
    MusicTxForSequenceClassification,
    MusicTxForTokenClassification,
    MusicTxModel,
    MusicTxPreTrainedModel,
)

AutoConfig.register("music_tx", MusicTxConfig)
AutoModel.register(MusicTxConfig, MusicTxModel)
AutoModelForCausalLM.register(MusicTxConfig, MusicTxForCausalLM)
AutoModelForSequenceClassification.register(MusicTxConfig, MusicTxForSequenceClassification)
AutoModelForTokenClassification.register(MusicTxConfig, MusicTxForTokenClassification)

# A saved model brings its code along, so that it loads where this package is not installed.
MusicTxConfig.register_for_auto_class()
MusicTxModel.register_for_auto_class("AutoModel")
MusicTxForCausalLM.register_for_auto_class("AutoModelForCausalLM")
MusicTxForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
MusicTxForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "MusicTxConfig",
    "MusicTxForCausalLM",
    "MusicTxForSequenceClassification",
    "MusicTxForTokenClassification",
    "MusicTxModel",
    "MusicTxPreTrainedModel",
]
