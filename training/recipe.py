"""The recipe of a training: its fields, the YAML file, and the command line that overrides it."""

import argparse
import ast
import math
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool


class _ConfigField(NamedTuple):
    """The type of a field of `MusicTxConfig`, and its help text."""

    kind: type
    help: str


def _config_fields() -> dict[str, _ConfigField]:
    """Read the fields of `MusicTxConfig` that a recipe may set from its source, for importing it takes seconds."""
    source = Path(find_spec("modeling_music_tx").origin).with_name("configuration_music_tx.py").read_text("utf-8")
    (config,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    texts = re.findall(r"^ {4}(\w+) \(.*\):\n((?: {8}.*\n)+)", ast.get_docstring(config), re.MULTILINE)
    helps = {name: " ".join(text.split()).replace("`", "") for name, text in texts}
    fields = {}
    for node in (node for node in config.body if isinstance(node, ast.AnnAssign)):
        name, kinds = node.target.id, ast.unparse(node.annotation).split(" | ")
        # All but those that the tokenizer decides.
        if not name.endswith("token_id") and name not in ("vocab_size", "use_cache"):
            kind = {"int": int, "float": float, "str": str, "bool": bool}["float" if "float" in kinds else kinds[0]]
            fields[name] = _ConfigField(kind, helps[name])
    return fields


CONFIG_FIELDS = _config_fields()

# What the fields of a recipe must satisfy.
AT_LEAST_ONE = ("batch_size", "sequence_length", "gradient_accumulation_steps", "max_steps", "logging_steps")
AT_LEAST_ONE += ("eval_steps", "save_steps", "save_total_limit", "halvings")
NOT_NEGATIVE = ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "max_skipped_steps", "lora_rank")
NOT_NEGATIVE += ("seed", "dataloader_num_workers", "embedding_learning_rate")
FRACTIONS = ("short_fraction", "decay_fraction", "adam_beta2", "control_fraction", "infill_fraction")


@dataclass
class Recipe:
    """The fields of a recipe that are not fields of `MusicTxConfig`."""

    corpus: str = field(metadata={"help": "prepared corpus: a folder, or user/name on the Hub"})
    output_dir: str = field(metadata={"help": "folder of checkpoints, logs and the finished model"})
    init_from: str | None = field(
        default=None, metadata={"help": "model to fine-tune: a folder, or user/name on the Hub"}
    )
    lora_rank: int = field(default=0, metadata={"help": "train LoRA adapters of this rank; 0 trains all weights"})
    sequence_length: int = field(default=1024, metadata={"help": "tokens per crop"})
    batch_size: int = field(default=4, metadata={"help": "crops per process and forward pass"})
    short_fraction: float = field(
        default=0.0,
        metadata={"help": "share of the steps, at the beginning, with shorter crops and more of them"},
    )
    halvings: int = field(
        default=1,
        metadata={"help": "times that the short crops are halved; with 2, the first half of them are of a quarter"},
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimizer step"})
    max_steps: int = field(default=6000, metadata={"help": "optimizer steps"})
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw", metadata={"help": "optimizer of the layers' matrices; AdamW for the rest"}
    )
    learning_rate: float = field(default=1.5e-3, metadata={"help": "peak learning rate"})
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "with Muon, peak learning rate of what AdamW trains, if it is another"}
    )
    warmup_steps: int = field(default=200, metadata={"help": "steps of linear warmup"})
    decay_fraction: float = field(
        default=0.4, metadata={"help": "share of the steps, at the end, with a linear decay to zero"}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "of matrices; biases and norms have none"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's beta2"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    max_skipped_steps: int = field(
        default=20, metadata={"help": "steps without a finite loss and gradient to skip before giving up"}
    )
    augment: bool = field(default=True, metadata={"help": "transpose by -3..+3 semitones, stretch time by up to 5%%"})
    control_fraction: float = field(
        default=0.0, metadata={"help": "share of the crops that state density, loudness, note length, composer"}
    )
    infill_fraction: float = field(default=0.0, metadata={"help": "share of the crops with a gap to fill"})
    mixed_precision: Literal["no", "bf16", "fp16"] = field(default="no", metadata={"help": "autocast dtype"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "attention, such as triton_relative on a GPU; blocked_relative if not given"}
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile the model"})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute each layer in the backward pass to save memory"}
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "dtype of the saved weights; they load as float32"}
    )
    seed: int = field(default=0, metadata={"help": "seed of weights, crops and dropout"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "worker processes for the crops"})
    logging_steps: int = field(default=10, metadata={"help": "steps between log lines"})
    eval_steps: int = field(
        default=2000, metadata={"help": "steps between evaluations on the validation split, each with a sample"}
    )
    save_steps: int = field(default=500, metadata={"help": "steps between checkpoints"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints to keep, besides the best model"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": '"latest", or a checkpoint folder'})
    overwrite: bool = field(
        default=False, metadata={"help": "start over in an output_dir that holds checkpoints, which are removed"}
    )
    report_to: Literal["tensorboard", "trackio", "wandb", "none"] = field(
        default="tensorboard", metadata={"help": "experiment tracker"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "user/name: publish the finished model, and each best one on the branch best"}
    )

    def is_due(self, step: int, every: int) -> bool:
        """Whether something done every `every` steps, and after the last step, is due after this one."""
        return step == self.max_steps or (step > 0 and step % every == 0)

    def batch_shape(self, step: int) -> tuple[int, int]:
        """Crops per process and forward pass, and tokens per crop."""
        halvings = sum(step < end for end in self.short_ends())
        return self.batch_size << halvings, self.sequence_length >> halvings

    def short_ends(self) -> list[int]:
        """The steps at which crops double in length, in order."""
        short = self.short_fraction * self.max_steps
        return [math.ceil(short * part / self.halvings) for part in range(1, self.halvings + 1)]


class _NoAliases(yaml.SafeLoader):
    """YAML without aliases: nested ones expand to more than memory holds."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a recipe")
        return super().compose_node(parent, index)


def parse(argv: list[str], description: str = "") -> tuple[Recipe, dict]:
    """Read the recipe file, then the command line, which overrides it.

    Args:
        argv: A recipe file, optionally, and `--field value` pairs.
        description: Text of `--help`.

    Returns:
        The recipe, and the given fields of `MusicTxConfig`.
    """
    usage = "accelerate launch train.py [recipe.yaml] [--field value ...]"
    parser = HfArgumentParser(Recipe, description=description, usage=usage)
    # It gives --no_augment the text of --augment.
    for action in (action for action in parser._actions if isinstance(action, argparse._StoreFalseAction)):
        action.help = f"the opposite of --{action.dest}"
    add_config_fields(parser)
    if argv and not argv[0].startswith("-"):
        argv = [*recipe_flags(parser, argv[0]), *argv[1:]]
    recipe, config, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    config = {name: value for name, value in vars(config).items() if value is not None}
    if unknown:
        parser.error(f"no such field: {' '.join(unknown)}; --help lists them all.")
    for name in AT_LEAST_ONE:
        if getattr(recipe, name) < 1:
            parser.error(f"{name} ({getattr(recipe, name)}) must be at least 1.")
    for name in NOT_NEGATIVE:
        if getattr(recipe, name) is not None and not 0 <= getattr(recipe, name) < math.inf:
            parser.error(f"{name} ({getattr(recipe, name)}) must be a finite number, 0 or more.")
    for name in FRACTIONS:
        if not 0 <= getattr(recipe, name) <= 1:
            parser.error(f"{name} ({getattr(recipe, name)}) must be from 0 to 1.")
    if recipe.short_fraction and recipe.sequence_length % 2**recipe.halvings:
        parser.error(
            f"sequence_length ({recipe.sequence_length}) must be a multiple of {2**recipe.halvings}, for "
            "short_fraction to halve it."
        )
    # Imported last, for it takes seconds: other mistakes are told at once.
    from modeling_music_tx import MusicTxConfig

    try:
        MusicTxConfig(**config)
    except (ValueError, StrictDataclassError) as error:
        parser.error(str(error.__cause__ or error))
    return recipe, config


def recipe_flags(parser: HfArgumentParser, path: str) -> list[str]:
    """Return the fields of a recipe file as command-line flags."""
    try:
        values = yaml.load(Path(path).read_text(), _NoAliases)
    # ValueError: bytes that are no text, or a number of thousands of digits; RecursionError: nested thousands deep.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        parser.error(f"the recipe {path} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        parser.error(f"the recipe {path} must hold lines of `field: value`.")
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def add_config_fields(parser: HfArgumentParser) -> None:
    """Add the fields of `MusicTxConfig` to a parser; a field not given is None."""
    for name, (kind, text) in CONFIG_FIELDS.items():
        convert = string_to_bool if kind is bool else kind
        parser.add_argument(f"--{name}", type=convert, default=None, help=text.replace("%", "%%"))
