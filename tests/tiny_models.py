"""Models small enough for tests, which have learned nothing."""

from pathlib import Path

import torch

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer


def make_model(tokenizer: MusicTxTokenizer, **fields) -> MusicTxForCausalLM:
    """Create a model for the tokenizer's ids, always with the same weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MusicTxForCausalLM(
        MusicTxConfig(**{"vocab_size": len(tokenizer), "max_relative_distance": 32, **shape, **fields})
    )


def save_model(folder: Path, tokenizer: MusicTxTokenizer, **fields) -> Path:
    """Save such a model and its tokenizer to a folder."""
    make_model(tokenizer, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
