"""Music Transformer for Hugging Face Transformers: ids in, logits out.

Shape letters: B batch, Q queries (the new tokens), K keys (cached and new), H heads, D head dimension, C hidden size.
"""

import dataclasses
import functools
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.dynamic_module_utils import custom_object_save
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .buffered_cache import use_buffers
from .configuration_music_tx import MusicTxConfig
from .relative_attention import BLOCKED, relative_logits

try:
    from .relative_attention_triton import TRITON
except ImportError:  # PyTorch for CPUs comes without Triton
    TRITON = None


# Transformers calls the cache `cache` from 5.24 on and `past_key_values` before: in outputs, masks and layers.
CACHE_NAME = (
    "cache" if "cache" in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)} else "past_key_values"
)


# What `generate()` adds to a prompt by default: about 25 seconds of piano at MAESTRO's 40 events a second.
DEFAULT_NEW_TOKENS = 1024

# PEFT's default for LoRA.
LORA_TARGETS = ["qkv_proj", "o_proj", "up_proj", "down_proj"]


def accepts_cache(forward: Callable) -> Callable:
    """Lets a `forward` with a parameter `past_key_values` take the cache as `cache` too, as Transformers 5.24 does."""

    @functools.wraps(forward)
    def renamed(self, *args, **kwargs):
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        return forward(self, *args, **kwargs)

    return renamed


def apply_linear(linear: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer; when compiled for a CPU, multiply a single row at the speed of memory.

    Decoding consists of such products, and matrix libraries run them on one core at a fraction of the memory
    bandwidth. Of a sum of products the compiler makes one parallel loop (benchmarks/decoding.py). The layers
    themselves stay plain `nn.Linear`, which quantizers look for and replace.
    """
    is_row = input.numel() == input.shape[-1] and input.device.type == "cpu"
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    is_plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
    if not (is_row and is_compiled and is_plain):
        return linear(input)
    # A strided view makes the compiler store the row, rather than recompute the normalisation or activation that it
    # comes from for every output.
    row = input.reshape(-1).as_strided((input.shape[-1],), (1,))
    output = (linear.weight * row).sum(-1)
    return (output if linear.bias is None else output + linear.bias).view(*input.shape[:-1], -1)


class MusicTxMLP(nn.Module):
    """The feed-forward block, [B, Q, C] to [B, Q, C]."""

    def __init__(self, config: MusicTxConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.down_proj.ends_in_residual = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return apply_linear(self.down_proj, nn.functional.gelu(apply_linear(self.up_proj, hidden_states)))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention step by step; the only one that returns its weights.

    Args:
        query, key, value: [B, H, Q, D], [B, H, K, D], [B, H, K, D].
        attention_mask: additive, or true where a key is seen, [B, 1, Q, K].
        position_bias: [B, H, Q, K], already scaled.

    Returns:
        [B, Q, H, D] and the weights [B, H, Q, K].
    """
    scores = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MusicTxAttention(nn.Module):
    """Relative global attention, with a table of relative embeddings of its own for each head.

    With a value residual, each layer after the first mixes the first layer's values into its own; its cache holds the
    mixture.

    Source: Huang et al. 2018, section 3.4; Zhou et al. 2024 (arXiv 2410.17897) for the value residual.
    """

    def __init__(self, config: MusicTxConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        width = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.o_proj.ends_in_residual = True
        self.relative_embeddings = None
        if config.max_relative_distance:
            # [H, M, D]; row M - 1 - d holds distance d.
            self.relative_embeddings = nn.Parameter(
                torch.empty(self.num_heads, config.max_relative_distance, self.head_dim)
            )
        # Factors of a layer's own values and of the first layer's, [2].
        self.value_mix = nn.Parameter(torch.empty(2)) if config.value_residual and layer_idx > 0 else None

    @accepts_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        first_values: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Attends.

        Args:
            hidden_states: [B, Q, C].
            attention_mask: additive, or true where a key is seen, [B, 1, Q, K].
            position_ids: [B or 1, Q], given only with a 4D mask of the caller.
            past_key_values: keys and values of the tokens before.
            first_values: the first layer's values for these tokens, [B, H, Q, D]; None in the first layer.

        Returns:
            [B, Q, C]; the attention weights [B, H, Q, K] if the implementation returns them; the first layer's values.
        """
        batch, query_length, _ = hidden_states.shape
        qkv = apply_linear(self.qkv_proj, hidden_states).view(batch, query_length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, H, Q, D] each
        if first_values is None:
            first_values = value
        if self.value_mix is not None:
            own, first = self.value_mix.to(value.dtype)
            value = own * value + first * first_values

        offset = 0
        if past_key_values is not None:
            _, key_offset = past_key_values.get_mask_sizes(query_length, self.layer_idx)
            # A static cache returns the counter that `update` increments in place, so take the difference first.
            offset = past_key_values.get_query_offset(self.layer_idx) - key_offset
            key, value = past_key_values.update(key, value, self.layer_idx)
        distances = None
        if position_ids is not None:
            # Set only with a 4D mask of the caller, whose positions need not be consecutive.
            distances = position_ids[:, :, None] - position_ids[:, None, :]  # [B or 1, Q, K]

        implementation = self.config._attn_implementation
        if implementation in (BLOCKED, TRITON):
            kwargs.update(relative_embeddings=self.relative_embeddings, offset=offset, distances=distances)
        elif self.relative_embeddings is not None:
            embeddings = self.relative_embeddings.to(query.dtype)
            kwargs["position_bias"] = relative_logits(
                query * self.scaling, embeddings, key.shape[2], offset, distances
            )
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        if torch.compiler.is_exporting():
            # Exporters replace attention by operators whose output may have other strides than the traced one.
            output = output.clone(memory_format=torch.contiguous_format)
        return apply_linear(self.o_proj, output.reshape(batch, query_length, -1)), weights, first_values


class MusicTxDecoderLayer(GradientCheckpointingLayer):
    """Attention, then feed-forward, each normalised before and added to the residual stream after."""

    def __init__(self, config: MusicTxConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = MusicTxAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MusicTxMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden_states: torch.Tensor, first_values: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [B, Q, C] to the same, and returns the first layer's values too, as `MusicTxAttention` does."""
        attention_output, _, first_values = self.self_attn(
            self.input_layernorm(hidden_states), first_values=first_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        hidden_states = hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
        return hidden_states, first_values


# The attention implementations that compute the relative term. Others ignore `position_bias` without an error.
SUPPORTED_ATTENTION = (BLOCKED, "triton_relative", "sdpa", "eager", "flex_attention")


def require_position_bias(implementation: str) -> None:
    """Refuse attention that would leave out the relative term.

    Raises:
        ValueError: `implementation` is not one of `SUPPORTED_ATTENTION`.
    """
    if implementation not in SUPPORTED_ATTENTION:
        raise ValueError(
            f'attn_implementation "{implementation}" takes no bias that depends on the query, as relative attention '
            f'needs it; use "{BLOCKED}" (the default), "sdpa", "eager" or "flex_attention", or on a GPU of NVIDIA '
            '"triton_relative".'
        )


class MusicTxPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation for all Music Transformer models."""

    config: MusicTxConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MusicTxDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = False
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MusicTxDecoderLayer, "attentions": MusicTxAttention}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # PEFT looks up a model's default LoRA targets in a table of its own; it is not imported for that alone.
        if peft := sys.modules.get("peft.utils.constants"):
            peft.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(self.config.model_type, LORA_TARGETS)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Default to blocked attention, or to sdpa if there is no relative term to compute."""
        require_position_bias(requested_attention or BLOCKED)
        if requested_attention == "triton_relative" and TRITON is None:
            raise ValueError(
                'attn_implementation "triton_relative" needs the package triton, which PyTorch for CUDA installs; '
                f'use "{BLOCKED}" (the default).'
            )
        if requested_attention in (None, BLOCKED, TRITON):
            requested_attention = (requested_attention or BLOCKED) if self.config.max_relative_distance else None
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """Save weights, configuration and code, and map the Auto classes of the other heads to the code as well.

        Where the package `tokenization` has registered its pipeline, a causal model names it and saves its code too.
        """
        pipeline = PIPELINE_REGISTRY.supported_tasks.get("midi-generation")
        if pipeline is not None and self._auto_class == "AutoModelForCausalLM":
            impl = pipeline["impl"]
            name = f"{impl.__module__.split('.')[-1]}.{impl.__name__}"
            self.config.custom_pipelines = {"midi-generation": {"impl": name, "pt": [self._auto_class]}}
            # A model whose code came with its weights is saved with its own pipeline, by its tokenizer.
            if not __name__.startswith("transformers_modules."):
                Path(save_directory).mkdir(parents=True, exist_ok=True)
                custom_object_save(impl, save_directory)
        if self._auto_class is not None:
            known = getattr(self.config, "auto_map", None) or {}
            others = {
                "AutoModel": MusicTxModel,
                "AutoModelForSequenceClassification": MusicTxForSequenceClassification,
                "AutoModelForTokenClassification": MusicTxForTokenClassification,
            }
            file = __name__.split(".")[-1]
            self.config.auto_map = {auto: f"{file}.{kind.__name__}" for auto, kind in others.items()} | known
        super().save_pretrained(save_directory, *args, **kwargs)
        # safetensors writes files that no other user can read.
        for weights in Path(save_directory).glob("*.safetensors"):
            shutil.copymode(Path(save_directory, "config.json"), weights)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Normal weights, zero biases; weights that write to the residual stream are scaled down by their number."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            ends = 2 * self.config.num_hidden_layers if getattr(module, "ends_in_residual", False) else 1
            initialization.normal_(module.weight, std=std / math.sqrt(ends))
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                initialization.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, MusicTxAttention):
            if module.relative_embeddings is not None:
                initialization.normal_(module.relative_embeddings, std=std)
            if module.value_mix is not None:
                initialization.constant_(module.value_mix, 0.5)


class MusicTxModel(MusicTxPreTrainedModel):
    """The decoder: ids [B, Q] to hidden states [B, Q, C].

    Source: Huang et al. 2018, section 3.
    """

    def __init__(self, config: MusicTxConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([MusicTxDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @accepts_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Runs the decoder.

        Args:
            input_ids: [B, Q]; or `inputs_embeds` [B, Q, C] in their place.
            attention_mask: [B, K], 0 at padding, or a mask of your own, [B, 1, Q, K].
            position_ids: [B or 1, Q]; relative attention needs none. Used by sinusoids, to tell packed sequences
                apart, and for distances under a [B, 1, Q, K] mask.
            past_key_values: keys and values of the tokens before.
            use_cache: whether to return keys and values for the next call.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        # A kernel from the Hub is set without being checked, and continuous batching brings a paged cache to any.
        is_paged = past_key_values is not None and not isinstance(past_key_values, Cache)
        require_position_bias("paged" if is_paged else self.config._attn_implementation)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
            use_buffers(past_key_values)

        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        # A 4D mask over the queries alone comes from the caller; `generate` makes larger ones for static caches.
        own_layout = attention_mask is not None and attention_mask.shape[2:] == (inputs_embeds.shape[1],) * 2
        create_mask = create_sliding_window_causal_mask if self.config.sliding_window else create_causal_mask
        mask = create_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: past_key_values},
        )

        layout = position_ids if own_layout else None
        hidden_states = inputs_embeds
        if self.config.position_embedding == "sinusoidal":
            if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
                # Padding on the left takes no positions.
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
            elif position_ids is None:
                position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
            # The initial embeddings are small; times the square root of the width, as in Vaswani et al., they have the
            # scale of the sinusoids.
            hidden_states = hidden_states * math.sqrt(self.config.hidden_size)
            hidden_states = hidden_states + sinusoids(position_ids, self.config.hidden_size).to(hidden_states.dtype)
        hidden_states = self.dropout(hidden_states)
        # Assisted decoding with `assistant_early_exit` lowers `num_hidden_layers`.
        first_values = None
        for layer in self.layers[: self.config.num_hidden_layers]:
            # What carries gradients comes by position: reentrant checkpointing cuts the graph there, and there alone.
            hidden_states, first_values = layer(
                hidden_states,
                first_values,
                attention_mask=mask,
                position_ids=layout,
                **{CACHE_NAME: past_key_values},
                **kwargs,
            )
        return BaseModelOutputWithPast(self.norm(hidden_states), past_key_values)


def sinusoids(position_ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """Sine and cosine positions, [B, Q] to [B, Q, C] in single precision.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5; sines first, then cosines, as the paper's code has it.
    """
    count = (hidden_size + 1) // 2
    exponents = torch.arange(count, device=position_ids.device, dtype=torch.float32) / max(count - 1, 1)
    angles = position_ids[..., None].float() * torch.exp(-math.log(10000.0) * exponents)  # [B, Q, C / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :hidden_size]


class MusicTxForCausalLM(MusicTxPreTrainedModel, GenerationMixin):
    """The decoder with a head that predicts the next token: ids [B, Q] to logits [B, Q, V]."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MusicTxConfig):
        super().__init__(config)
        self.model = MusicTxModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_generated_length(
        self, generation_config, has_default_max_length: bool, input_ids_length: int, **kwargs
    ):
        """Add `DEFAULT_NEW_TOKENS` to the prompt if the caller gives no length; Transformers adds 20."""
        is_default = has_default_max_length and generation_config.max_new_tokens is None
        if is_default:
            generation_config.max_length = DEFAULT_NEW_TOKENS
        generation_config = super()._prepare_generated_length(
            generation_config,
            has_default_max_length=has_default_max_length,
            input_ids_length=input_ids_length,
            **kwargs,
        )
        if is_default:  # without this, Transformers warns of its own default
            generation_config.max_new_tokens = generation_config.max_length - input_ids_length
        return generation_config

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs):
        """Let the dynamic cache that `generate` creates grow in place; a cache of the caller stays as it is."""
        is_given = model_kwargs.get(CACHE_NAME) is not None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE_NAME)
        if not is_given and isinstance(cache, DynamicCache):
            use_buffers(cache)

    def init_continuous_batching(self, *args, **kwargs):
        """Refuse continuous batching, whose paged attention takes no position bias.

        Raises:
            ValueError: Always.
        """
        require_position_bias("paged attention")

    generate_batch = init_continuous_batching

    @accepts_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Runs the decoder and the head.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: as for `MusicTxModel`.
            labels: [B, Q], usually the input ids themselves: the loss shifts them; -100 is not scored.
            logits_to_keep: how many of the last logits to compute, or which; 0 for all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = apply_linear(self.lm_head, outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


class MusicTxForSequenceClassification(GenericForSequenceClassification, MusicTxPreTrainedModel):
    """The decoder with a head that classifies pieces by their last token, for example by composer."""

    def __init__(self, config: MusicTxConfig):
        # The generic class creates its decoder by AutoModel, which does not find code from the Hub.
        MusicTxPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = MusicTxModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class MusicTxForTokenClassification(GenericForTokenClassification, MusicTxPreTrainedModel):
    """The decoder with a head that labels tokens, for example with fingerings or voices."""

    def __init__(self, config: MusicTxConfig):
        MusicTxPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = MusicTxModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


# Trainer shifts labels for label smoothing only for the classes listed here.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(MusicTxConfig.model_type, MusicTxForCausalLM.__name__)


__all__ = [
    "MusicTxForCausalLM",
    "MusicTxForSequenceClassification",
    "MusicTxForTokenClassification",
    "MusicTxModel",
    "MusicTxPreTrainedModel",
]
