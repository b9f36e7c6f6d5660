"""Configuration of the Music Transformer."""

from transformers.utils.versions import require_version

# Checked before anything is imported that other versions lack.
require_version("transformers>=5.20,<6", 'Try: pip install "transformers>=5.20,<6"')
require_version("torch>=2.12", 'Try: pip install "torch>=2.12"')

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import PreTrainedConfig  # noqa: E402


@strict
class MusicTxConfig(PreTrainedConfig):
    r"""Configuration of a Music Transformer: a decoder with relative global attention (Huang et al. 2018).

    Args:
        vocab_size (`int`, defaults to 391):
            Number of token ids; 391 is the paper's performance encoding with padding, begin and end.
        hidden_size (`int`, defaults to 256):
            Width of the residual stream.
        intermediate_size (`int`, defaults to 1024):
            Width inside the feed-forward block.
        num_hidden_layers (`int`, defaults to 6):
            Number of decoder layers.
        num_attention_heads (`int`, defaults to 4):
            Number of attention heads.
        head_dim (`int`, *optional*):
            Width of one head; `hidden_size / num_attention_heads` when not given. The paper's best model has a hidden
            size of 256 and 8 heads of 64.
        max_relative_distance (`int`, defaults to 1024):
            Number of distances that have an embedding of their own, distance 0 included; farther ones share the last.
            Keep it within the training length: untrained distances are noise. 0 switches the relative term off.
        position_embedding (`str`, defaults to `"none"`):
            `"sinusoidal"` adds Vaswani et al.'s sinusoids to the input, as the paper's baseline does; `"none"` leaves
            position to the relative term.
        value_residual (`bool`, defaults to `False`):
            Whether each layer's values are a learned mixture of its own and the first layer's (Zhou et al. 2024,
            arXiv 2410.17897).
        sliding_window (`int`, *optional*):
            How many tokens a query attends to, its own included. With one, the cache has constant size and generation
            may go on without end.
        max_position_embeddings (`int`, *optional*):
            Longest sequence that the model is meant for; None for no limit.
        layer_norm_eps (`float`, defaults to 1e-5):
            Added to the variance in every layer normalisation.
        hidden_dropout (`float`, defaults to 0.0):
            Dropout on the embeddings and on the output of each block.
        attention_dropout (`float`, defaults to 0.0):
            Dropout on the attention weights.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial weights.
        use_cache (`bool`, defaults to `True`):
            Whether to return keys and values for the next call.
        tie_word_embeddings (`bool`, defaults to `True`):
            Whether the output layer shares the input embedding.

    Source: Huang et al. 2018 (arXiv 1809.04281), sections 3 and 4.
    """

    model_type = "music_tx"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    vocab_size: int = 391
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    head_dim: int | None = None
    max_relative_distance: int = 1024
    position_embedding: str = "none"
    value_residual: bool = False
    sliding_window: int | None = None
    max_position_embeddings: int | None = None
    layer_norm_eps: float = 1e-5
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs):
        if self.head_dim is None and self.num_attention_heads > 0:
            if self.hidden_size % self.num_attention_heads:
                below = self.hidden_size // self.num_attention_heads * self.num_attention_heads
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                    f"({self.num_attention_heads}) when head_dim is not given; try {below} or "
                    f"{below + self.num_attention_heads}, or set head_dim."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict`'s validation: numbers that are wrong alone or together.

        Raises:
            ValueError: What was given, what is allowed and what to do.
        """
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.max_relative_distance < 0:
            raise ValueError(
                f"max_relative_distance ({self.max_relative_distance}) must be 0 (no relative term) or more."
            )
        if self.position_embedding not in ("none", "sinusoidal"):
            raise ValueError(f'position_embedding ("{self.position_embedding}") must be "none" or "sinusoidal".')
        if self.sliding_window is not None:
            if self.sliding_window < 2:
                raise ValueError(f"sliding_window ({self.sliding_window}) must be 2 or more, or None for no window.")
            if self.position_embedding == "sinusoidal":
                raise ValueError(
                    f"sliding_window ({self.sliding_window}) cannot go with sinusoidal positions, which leave the "
                    'trained range as the window moves; set position_embedding to "none" or sliding_window to None.'
                )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0 and less than 1.")


__all__ = ["MusicTxConfig"]
