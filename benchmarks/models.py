"""Models for the benchmarks: ours, and Llama with as many layers, heads and parameters."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM


def music_tx(width: int, device: str, num_layers: int = 6) -> MusicTxForCausalLM:
    """A new model with heads of 64 and relative logits as large as the scores, so that a wrong distance shows."""
    config = MusicTxConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_hidden_layers=num_layers,
    )
    torch.manual_seed(0)
    model = MusicTxForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.relative_embeddings)
    return model.to(device)


def llama(config: MusicTxConfig, device: str) -> LlamaForCausalLM:
    """A new Llama of the same width, depth, heads, vocabulary and size, with a larger feed-forward block."""
    tables = config.num_attention_heads * config.max_relative_distance * config.head_dim
    matrices = 2 * config.hidden_size * config.intermediate_size
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=round((matrices + tables) / (3 * config.hidden_size)),
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            max_position_embeddings=2**17,
            tie_word_embeddings=config.tie_word_embeddings,
            pad_token_id=config.pad_token_id,
            attn_implementation="sdpa",
        )
    )
    return model.to(device)


def num_parameters(model: PreTrainedModel) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
