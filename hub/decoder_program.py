"""The decoder as an ONNX program for one sequence, with the cache as inputs and outputs.

The program takes the next tokens and the keys and values of the tokens before, and returns logits and the keys and
values of the new tokens alone. The caller keeps a ring of `window` tokens and writes the new ones into it, so that
nothing is copied and an hour of music needs as much memory as a minute:

    input_ids             [1, Q]         the new tokens, at most `chunk`
    position              [1]            how many tokens came before them
    past_key_values.N.key    [1, H, D, W]   the ring: position p stands in slot p mod W
    past_key_values.N.value  [1, H, W, D]
    logits                [1, Q, V]
    present.N.key         [1, H, D, Q]   to be written into the slots of the new positions
    present.N.value       [1, H, Q, D]

Keys are stored by feature: the scores of one query are then sums of rows, which read the memory in order. Slots that
are not written yet, or that a query no longer sees, are masked by their position.

With one new query the relative logits are the product of that query with the table as it is stored, a slice of it;
with more, the products of each query are shifted by one column against those of the one before (`skew`).

Shape letters: H heads, Q queries, W tokens of the window, D head dimension, C hidden size, M distances in the table,
V vocabulary, T tokens.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

# The most tokens of one call. More would make the first part of a phrase wait longer for its turn in the page.
CHUNK = 64

# The window of a model that was trained without one.
DEFAULT_WINDOW = 1024

# The first set of operators with LayerNormalization and Gelu.
OPSET = 20


def check_architecture(model: nn.Module) -> None:
    """Refuse what the program does not compute.

    Raises:
        ValueError: It is no decoder with relative attention alone.
    """
    config = model.config
    if config.model_type != "music_tx" or not hasattr(model, "lm_head"):
        raise ValueError(f"a {config.model_type} cannot be exported; the page plays causal models of type music_tx.")
    if config.position_embedding != "none" or not config.max_relative_distance:
        raise ValueError(
            f'position_embedding "{config.position_embedding}" with max_relative_distance '
            f"{config.max_relative_distance} cannot be exported: the window of the page slides, which needs relative "
            "attention alone."
        )


class DecoderProgram(nn.Module):
    """What the ONNX program computes, with the layers of a model.

    Args:
        model: A `MusicTxForCausalLM`.
        window: Tokens that a query attends to, its own included; the model's sliding window unless given.

    Raises:
        ValueError: The model is of another architecture.
    """

    def __init__(self, model: nn.Module, window: int | None = None):
        super().__init__()
        check_architecture(model)
        config = model.config
        self.model = model
        self.window = window or config.sliding_window or DEFAULT_WINDOW
        self.num_layers, self.num_heads, self.head_dim = (
            config.num_hidden_layers,
            config.num_attention_heads,
            config.head_dim,
        )
        # The distances that are met, and two more, so that the exporter sees one case in `_relative_logits`. Those
        # beyond the table of a model share its farthest embedding.
        self.span = self.window + CHUNK + 2
        attentions = [layer.self_attn for layer in model.model.layers]
        # The scaling of the queries is part of their weights: a factor on products keeps onnxruntime from its fastest
        # way for a single row. [3 * H * D, C]
        scaling = torch.ones(3 * self.num_heads * self.head_dim, 1)
        scaling[: self.num_heads * self.head_dim] = attentions[0].scaling
        self.qkv_weights = nn.ParameterList(one.qkv_proj.weight.detach() * scaling for one in attentions)
        # [H, D, M]
        self.tables = nn.ParameterList(self._table(one.relative_embeddings.detach()) for one in attentions)

    def _table(self, embeddings: torch.Tensor) -> torch.Tensor:
        beyond = embeddings[:, :1].expand(-1, max(self.span - embeddings.shape[1], 0), -1)
        return torch.cat([beyond, embeddings[:, -self.span :]], dim=1).transpose(1, 2).contiguous()

    def cache(self) -> list[torch.Tensor]:
        """Return an empty ring: keys and values of each layer in turn."""
        shapes = [(1, self.num_heads, self.head_dim, self.window), (1, self.num_heads, self.window, self.head_dim)]
        return [torch.zeros(shape) for _ in range(self.num_layers) for shape in shapes]

    def input_names(self) -> list[str]:
        """Names of the inputs in their order."""
        return ["input_ids", "position", *self._cache_names("past_key_values")]

    def output_names(self) -> list[str]:
        """Names of the outputs in their order."""
        return ["logits", *self._cache_names("present")]

    def _cache_names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{kind}" for layer in range(self.num_layers) for kind in ("key", "value")]

    def forward(
        self, input_ids: torch.Tensor, position: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute logits and new keys and values; see the top of the file."""
        decoder = self.model.model
        hidden_states = decoder.embed_tokens(input_ids)
        hidden = self._hidden(input_ids.shape[1], position)  # [Q, W + Q]
        # The ring from its first slot on, within two copies of what is in order of time.
        start = (self.window - position % self.window).item()
        torch._check(start >= 1)
        torch._check(start <= self.window)
        first_values, present = None, []
        for index, layer in enumerate(decoder.layers):
            attended, key, value, first_values = self._attend(
                index, layer.self_attn, layer.input_layernorm(hidden_states), past[2 * index : 2 * index + 2],
                hidden, start, first_values,
            )  # fmt: skip
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
            present += [key, value]
        return self.model.lm_head(decoder.norm(hidden_states)), *present

    def _hidden(self, queries: int, position: torch.Tensor) -> torch.Tensor:
        """The bias that hides keys, `[Q, W + Q]`: the W tokens before the new ones in order of time, then these."""
        key = torch.arange(self.window + queries)[None]
        query = torch.arange(queries)[:, None]
        is_seen = (key > query) & (key <= query + self.window) & (key >= self.window - position)
        return torch.where(is_seen, 0.0, -1e9)

    def _attend(self, index, attention, hidden_states, past, hidden, start, first_values):
        """Attention of a layer; returns its output, the new keys and values, and the first layer's values."""
        queries, heads = hidden_states.shape[1], self.num_heads
        qkv = nn.functional.linear(hidden_states, self.qkv_weights[index])
        qkv = qkv.view(1, queries, 3 * heads, self.head_dim).transpose(1, 2)
        query, key, value = qkv.split(heads, dim=1)  # [1, H, Q, D] each
        key = key.transpose(2, 3)  # [1, H, D, Q]
        first_values = value if first_values is None else first_values
        if attention.value_mix is not None:
            value = attention.value_mix[0] * value + attention.value_mix[1] * first_values

        bias = self._relative_logits(query, self.tables[index]) + hidden  # [1, H, Q, W + Q]
        before = bias[..., : self.window]
        # From the order of time to the order of the ring.
        before = torch.cat([before, before], dim=3).narrow(3, start, self.window)
        scores = torch.cat([query @ past[0] + before, query @ key + bias[..., self.window :]], dim=3)
        weights = scores.softmax(-1)
        output = weights[..., : self.window] @ past[1] + weights[..., self.window :] @ value
        output = output.transpose(1, 2).reshape(1, queries, heads * self.head_dim)
        return attention.o_proj(output), key, value, first_values

    def _relative_logits(self, query: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """The products of queries with the embeddings of distances to all keys, [1, H, Q, D] to [1, H, Q, W + Q]."""
        _, heads, queries, _ = query.shape
        products = query @ table  # [1, H, Q, M]; column j belongs to distance M - 1 - j
        # Query r meets key k at distance W + r - k. Without the first Q of them, the products of all queries make rows
        # of one column less, in which the column of a key is the same for all queries (`skew`).
        rows = products.reshape(1, heads, -1)[..., queries:].reshape(1, heads, queries, self.span - 1)
        return rows[..., CHUNK + 1 - queries :]


def export_program(program: DecoderProgram, path: Path) -> None:
    """Write a program as ONNX in single precision.

    Args:
        program: The program.
        path: The file to write.
    """
    queries = torch.export.Dim(
        "queries", min=2, max=CHUNK
    )  # the exporter takes 1 for a constant; the program does not
    past = program.cache()
    example = (torch.ones(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long), past)
    with warnings.catch_warnings(), torch.no_grad(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        graph = torch.export.export(program.eval(), example, dynamic_shapes=({1: queries}, None, [None] * len(past)))
        exported = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=OPSET,
            input_names=program.input_names(),
            output_names=program.output_names(),
            verbose=False,
        )
    proto = exported.model_proto
    for node in proto.graph.node:
        # Where in the source a node comes from, with paths of this machine.
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:], proto.graph.value_info[:], proto.metadata_props[:]
    onnx.save(proto, path)


def quantize_program(path: Path, quantized: Path) -> None:
    """Write a copy with weights in 8 bits, which multiplies in 8 bits too.

    Both factors are unsigned: products of signed and unsigned bytes saturate on some processors.

    Args:
        path: A program in single precision.
        quantized: The file to write.
    """
    with _quiet(""):
        quantize_dynamic(
            path,
            quantized,
            op_types_to_quantize=["MatMul", "Gather"],
            weight_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep loggers from reporting what is no concern of the user."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


class ProgramSession:
    """A program in onnxruntime on a CPU, with the ring that it reads.

    Args:
        path: The program.
        threads: Threads of one operator; those of the machine unless given.
    """

    def __init__(self, path: Path, threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs, self._outputs = self._session.get_inputs(), self._session.get_outputs()
        self._bindings = {}
        self.position = 0
        # The ring is bound once, and its memory written in place.
        self._past = [np.zeros(node.shape, np.float32) for node in self._inputs[2:]]
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._past]
        self.window = self._inputs[3].shape[2]

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """Take the next tokens, `[T]`; returns their logits, `[T, V]`."""
        chunks = [ids[first : first + CHUNK] for first in range(0, len(ids), CHUNK)]
        return np.concatenate([self._run(chunk).copy() for chunk in chunks])

    def _run(self, ids: Sequence[int]) -> np.ndarray:
        if len(ids) not in self._bindings:
            self._bindings[len(ids)] = self._bind(len(ids))
        binding, (input_ids, position), (logits, *present) = self._bindings[len(ids)]
        input_ids[0], position[0] = ids, self.position
        self._session.run_with_iobinding(binding)
        slots = (self.position + np.arange(len(ids))) % self.window
        if slots[0] <= slots[-1]:
            slots = slice(slots[0], slots[-1] + 1)
        for index in range(0, len(present), 2):
            self._past[index][..., slots] = present[index]
            self._past[index + 1][:, :, slots] = present[index + 1]
        self.position += len(ids)
        return logits[0]

    def _bind(self, length: int):
        """Bind memory for so many tokens; returns the binding, the inputs that are written and the outputs."""
        binding = self._session.io_binding()
        given = [np.zeros((1, length), np.int64), np.zeros(1, np.int64)]
        made = [
            np.zeros([size if isinstance(size, int) else length for size in o.shape], np.float32)
            for o in self._outputs
        ]
        for node, array in zip(self._inputs, given, strict=False):
            binding.bind_ortvalue_input(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for node, value in zip(self._inputs[2:], self._values, strict=True):
            binding.bind_ortvalue_input(node.name, value)
        for node, array in zip(self._outputs, made, strict=True):
            binding.bind_ortvalue_output(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return binding, given, made


def lost_nats(path: Path, other: Path, bos: int = 1, tokens: int = 512, seed: int = 0) -> float:
    """Measure how much worse another program predicts music, on music of the first one.

    The expected difference of their likelihoods on what the first one writes is the Kullback-Leibler divergence of
    the two distributions, which is taken exactly at every token of a sample.

    Args:
        path: The program that is right.
        other: The program to compare.
        bos: The id that music begins with.
        tokens: Length of the sample.
        seed: The same seed gives the same sample.

    Returns:
        Nats per token.
    """
    first, second, random = ProgramSession(path, 1), ProgramSession(other, 1), np.random.default_rng(seed)
    token, lost = bos, 0.0
    for _ in range(tokens):
        right, wrong = (_log_softmax(session([token])[0]) for session in (first, second))
        probabilities = np.exp(right)
        lost += float(probabilities @ (right - wrong))
        token = int(random.choice(len(right), p=probabilities / probabilities.sum()))
    return lost / tokens


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
