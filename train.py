"""Train a Music Transformer on a prepared corpus: `accelerate launch train.py recipes/maestro_small.yaml`.

A recipe is a YAML file of the fields below and of `MusicTxConfig`'s; `--field value` on the command line wins over it.
Several processes, on CPU too: `accelerate launch --multi_gpu --num_processes 2 train.py ...`. What else can be done,
from fine-tuning to what happens when the power fails, is told in docs/training.md.

Nothing random is remembered: what a step sees and drops depends on the seed, the step and the process alone.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, make_dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from huggingface_hub.errors import StrictDataclassError
from matplotlib.image import imread
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import AutoConfig, HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from corpus.dataset import (
    IGNORED,
    Crops,
    EvaluationWindows,
    PaperAugmentation,
    load_corpus,
    load_report,
    load_tokenizer,
)
from evaluation.likelihood import negative_log_likelihood
from evaluation.rendering import piano_roll
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MidiGenerationPipeline, MusicTxTokenizer, generate_music


@dataclass
class Recipe:
    """Everything a training does, but for the shape of the model."""

    corpus: str = field(metadata={"help": "what corpus.prepare wrote: a folder, or user/name on the Hub"})
    output_dir: str = field(metadata={"help": "where checkpoints, logs and the finished model go"})
    init_from: str | None = field(
        default=None, metadata={"help": "model to fine-tune: a folder, or user/name on the Hub; its shape is kept"}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "train additions of this rank to the layers' matrices, and nothing else; 0: all"}
    )
    sequence_length: int = field(default=1024, metadata={"help": "tokens per crop"})
    batch_size: int = field(default=4, metadata={"help": "crops per process and forward pass"})
    short_fraction: float = field(
        default=0.0,
        metadata={"help": "share of the steps, at the beginning, with twice as many crops of half the length"},
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimizer step"})
    max_steps: int = field(default=6000, metadata={"help": "optimizer steps"})
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata={"help": "for the matrices of the layers"})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "peak learning rate"})
    warmup_steps: int = field(default=200, metadata={"help": "steps of linear rise to the peak"})
    decay_fraction: float = field(default=0.4, metadata={"help": "share of the steps, at the end, that fall to zero"})
    weight_decay: float = field(default=0.1, metadata={"help": "of matrices; biases are not decayed"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second moment decay"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    max_skipped_steps: int = field(
        default=20, metadata={"help": "steps without a finite loss and gradient that are passed over before the end"}
    )
    augment: bool = field(default=True, metadata={"help": "transpose by -3..+3 semitones, stretch time by up to 5%%"})
    mixed_precision: Literal["no", "bf16", "fp16"] = field(default="no", metadata={"help": "of the matrix products"})
    compile: bool = field(default=False, metadata={"help": "torch.compile the model"})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "compute each layer again in the backward pass rather than remember it"}
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of the finished model's weights on disk; they load as float32"}
    )
    seed: int = field(default=0, metadata={"help": "of weights, crops and dropout"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that prepare crops"})
    logging_steps: int = field(default=10, metadata={"help": "steps between log lines"})
    eval_steps: int = field(
        default=2000, metadata={"help": "steps between evaluations of the validation split, each with a sample"}
    )
    save_steps: int = field(default=500, metadata={"help": "steps between checkpoints"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints to keep, besides the best model"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": '"latest", or a checkpoint folder'})
    report_to: Literal["tensorboard", "trackio", "wandb", "none"] = field(
        default="tensorboard", metadata={"help": "tracker of the numbers and samples"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "user/name: the finished model goes to main, each best one to the branch best"}
    )


# The shape of the model: MusicTxConfig's own fields, less those that the tokenizer decides. None is the config's own
# default, or the value of the model that is fine-tuned.
Shape = make_dataclass(
    "Shape",
    [
        (name, (float if kind == float | int else kind) | None, field(default=None))
        for name, kind in MusicTxConfig.__annotations__.items()
        if not name.endswith("token_id") and name not in ("vocab_size", "use_cache")
    ],
)


def main(argv: list[str]):
    """The whole training, in order."""
    recipe, shape = parse(argv)
    with one_line_for(OSError, ValueError):
        accelerator = make_accelerator(recipe)
        corpus = load_corpus(recipe.corpus)
        tokenizer = load_tokenizer(recipe.corpus)
        start = load_model(tokenizer, shape, recipe) if recipe.init_from else make_model(tokenizer, shape, recipe.seed)
        model = make_trainable(start, recipe)
        model, *optimizers = accelerator.prepare(model, *make_optimizers(model, recipe))
        optimizers = [optimizer.optimizer for optimizer in optimizers]  # whether they step is for train_step to say
        log = Log(accelerator, recipe, start.config)
        step = resume(accelerator, model, optimizers, log, recipe)
        loaders = make_loaders(corpus["train"], tokenizer, recipe, step, accelerator.num_processes)
        windows = EvaluationWindows(corpus["validation"], recipe.sequence_length)

    advice = f"; what stands in {recipe.output_dir} is whole: go on with --resume_from_checkpoint latest."
    with one_line_for(OSError, SafetensorError, FloatingPointError, advice=advice), Preemption() as preemption:
        log.begin(step)
        batches = chain.from_iterable([accelerator.prepare(loader) for loader in loaders])
        saved, stop = None, False
        while not stop:
            if due(step, recipe.eval_steps, recipe) and not log.is_evaluated(step):
                with log.pause():
                    nats_per_token = evaluate(accelerator, model, windows, recipe, preemption)
                    stop = nats_per_token is None
                    if not stop:
                        is_best = log.evaluation(step, nats_per_token)
                        music = gather_model(accelerator, model, start.config, recipe)
                        on_main(accelerator, keep_evaluation, music, tokenizer, log, recipe, step, is_best)
            elif step == recipe.max_steps:
                break
            else:
                done = train_step(accelerator, model, optimizers, batches, recipe, step, preemption)
                step, stop = step + 1, done.stop
                log.train(step, done)
                if due(step, recipe.save_steps, recipe):
                    with log.pause():
                        save_checkpoint(accelerator, model, optimizers, log, recipe, step)
                    saved = step

        if stop:
            if saved != step:
                save_checkpoint(accelerator, model, optimizers, log, recipe, step)
            accelerator.print(f"SIGTERM: stopped after step {step}; go on with --resume_from_checkpoint latest.")
        else:
            music = gather_model(accelerator, model, start.config, recipe)
            on_main(accelerator, finish, music, tokenizer, log, recipe, step)

        # The wrapper of several processes goes before their group. As the last to hold it, it would also hold Python
        # while it waits for the group's threads, and these may wait for Python.
        del model
        accelerator.free_memory()
        accelerator.end_training()
        if stop:
            raise SystemExit(128 + signal.SIGTERM)


# ---------------------------------------------------------------------------------------------------------------------
# Before the loop
# ---------------------------------------------------------------------------------------------------------------------


def parse(argv: list[str]) -> tuple[Recipe, Shape]:
    """Read the recipe, then the command line, which wins.

    Args:
        argv: A recipe file, optionally, and `--field value` pairs.
    """
    usage = "accelerate launch train.py [recipe.yaml] [--field value ...]"
    parser = HfArgumentParser((Recipe, Shape), description=__doc__, usage=usage)
    if argv and not argv[0].startswith("-"):
        argv = [*recipe_flags(parser, argv[0]), *argv[1:]]
    recipe, shape, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        parser.error(f"no such field: {' '.join(unknown)}; --help lists them all.")
    for name in ("batch_size", "gradient_accumulation_steps", "logging_steps", "eval_steps", "save_steps"):
        if getattr(recipe, name) < 1:
            parser.error(f"{name} ({getattr(recipe, name)}) must be at least 1.")
    if not 0 <= recipe.short_fraction <= 1:
        parser.error(f"short_fraction ({recipe.short_fraction}) must be from 0 to 1.")
    if recipe.short_fraction and recipe.sequence_length % 2:
        parser.error(f"sequence_length ({recipe.sequence_length}) must be even, for short_fraction to halve it.")
    try:
        MusicTxConfig(**given(shape))
    except (ValueError, StrictDataclassError) as error:
        parser.error(str(error.__cause__ or error))
    return recipe, shape


def recipe_flags(parser: HfArgumentParser, path: str) -> list[str]:
    """A recipe file as the flags it stands for."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"the recipe {path} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        parser.error(f"the recipe {path} must hold lines of `field: value`.")
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def given(shape: Shape) -> dict:
    """The fields of the shape that recipe or command line speak of."""
    return {name: value for name, value in asdict(shape).items() if value is not None}


def make_accelerator(recipe: Recipe) -> Accelerator:
    """What knows of devices, processes and precision, once it is clear that it can do what the recipe asks.

    Raises:
        ValueError: It cannot.
    """
    cpu = not torch.accelerator.is_available()
    shards = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    if recipe.mixed_precision == "fp16" and cpu:
        raise ValueError("mixed_precision (fp16) needs a GPU; on CPU use bf16 or no.")
    if shards and cpu:
        raise ValueError("FSDP needs GPUs; on CPU launch with --multi_gpu --num_processes N, without its config file.")
    if shards and recipe.optimizer == "muon":
        raise ValueError("optimizer (muon) needs whole matrices, and FSDP cuts them up; use --optimizer adamw.")
    if recipe.report_to != "none" and find_spec(recipe.report_to) is None:
        raise ValueError(f"{recipe.report_to} is not installed; pip install {recipe.report_to}, or --report_to none.")
    if recipe.push_to_hub and not Path(recipe.output_dir, "README.md").is_file():
        raise ValueError(
            f"push_to_hub ({recipe.push_to_hub}) needs a model card that names a license; write {recipe.output_dir}"
            "/README.md first."
        )
    disable_progress_bar()
    return Accelerator(
        # Said outright, or several processes without an accelerator would not know of each other.
        cpu=cpu,
        mixed_precision=recipe.mixed_precision,
        log_with=None if recipe.report_to == "none" else recipe.report_to,
        project_config=ProjectConfiguration(recipe.output_dir, logging_dir=str(Path(recipe.output_dir, "logs"))),
    )


def make_model(tokenizer, shape: Shape, seed: int) -> MusicTxForCausalLM:
    """A new model for the tokenizer's ids; every process draws the same weights."""
    torch.manual_seed(seed)
    return MusicTxForCausalLM(
        MusicTxConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **given(shape),
        )
    )


def load_model(tokenizer, shape: Shape, recipe: Recipe) -> MusicTxForCausalLM:
    """A trained model to go on from: its weights and shape; dropout may be given anew.

    Raises:
        OSError: The model cannot be had.
        ValueError: It is of another kind or shape, or reads other tokens than the corpus holds.
    """
    name = recipe.init_from
    config = AutoConfig.from_pretrained(name)
    if config.model_type != MusicTxConfig.model_type:
        raise ValueError(f"{name} is a model of type {config.model_type}; init_from takes {MusicTxConfig.model_type}.")
    for place, value in given(shape).items():
        if value != getattr(config, place) and not place.endswith("_dropout"):
            raise ValueError(f"{place} ({value}) is not that of {name} ({getattr(config, place)}); leave it out.")
    theirs = MusicTxTokenizer.from_pretrained(name).get_vocab()
    if theirs != tokenizer.get_vocab():
        raise ValueError(
            f"{name} reads another vocabulary ({len(theirs)} tokens) than {recipe.corpus} is written in "
            f"({len(tokenizer)} tokens); prepare the corpus with the model's tokenization, or train anew."
        )
    dropout = {place: value for place, value in given(shape).items() if place.endswith("_dropout")}
    return MusicTxForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **dropout)


def make_trainable(model: MusicTxForCausalLM, recipe: Recipe) -> torch.nn.Module:
    """The model as the optimizer is to meet it: with adapters, checkpointed, compiled, as the recipe says."""
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model = add_adapters(model, recipe.lora_rank) if recipe.lora_rank else model
    if recipe.compile:
        model.compile()
    return model


def add_adapters(model: MusicTxForCausalLM, rank: int) -> torch.nn.Module:
    """Freeze the model but for additions of low rank to the matrices of its layers.

    The relative embeddings stay as they are: what a distance means was learned from more music than one fine-tunes on.

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError(f"lora_rank ({rank}) needs peft; pip install peft.") from None
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=r".*_proj"))


def make_optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, if the recipe wants it, and AdamW for everything else that is trained.

    Biases and normalisation are not decayed.

    Source: Jordan et al. 2024; updates scaled to AdamW's size, so that one learning rate serves both, as in Liu et al.
    2025 (arXiv 2502.16982).
    """
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in parameters if recipe.optimizer == "muon" and name.endswith("_proj.weight")]
    rest = [p for name, p in parameters if recipe.optimizer != "muon" or not name.endswith("_proj.weight")]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers = [torch.optim.AdamW(groups, betas=(0.9, recipe.adam_beta2), fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def make_loaders(pieces, tokenizer, recipe: Recipe, step: int, num_processes: int) -> list[DataLoader]:
    """All the crops from a step on to the last, in order: which crop a step sees depends on the seed alone.

    Short crops come first, where the recipe wants them: attention to them costs less, and what is far is learned last.
    """
    loaders = []
    middle = math.ceil(recipe.short_fraction * recipe.max_steps)
    for first, end in ((step, middle), (max(step, middle), recipe.max_steps)):
        if first >= end:
            continue
        batch_size, length = batch_shape(first, recipe)
        crops = Crops(
            pieces,
            length,
            recipe.seed,
            augment=PaperAugmentation(tokenizer) if recipe.augment else None,
            num_processes=num_processes,
            batch_size=batch_size,
        )
        per_step = batch_size * recipe.gradient_accumulation_steps * num_processes
        loader = DataLoader(
            Subset(crops, range(first * per_step, end * per_step)),
            batch_size,
            num_workers=recipe.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        loaders.append(loader)
    return loaders


def batch_shape(step: int, recipe: Recipe) -> tuple[int, int]:
    """Crops per process and forward pass, and tokens per crop."""
    if step < recipe.short_fraction * recipe.max_steps:
        return 2 * recipe.batch_size, recipe.sequence_length // 2
    return recipe.batch_size, recipe.sequence_length


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


class Preemption:
    """SIGTERM, which preemption sends: noted, and acted on when the step under way is done."""

    asked = False

    def __enter__(self):
        self.previous = signal.signal(signal.SIGTERM, self.note)
        return self

    def __exit__(self, *error):
        signal.signal(signal.SIGTERM, self.previous)

    def note(self, *_):
        """Remember that it came."""
        self.asked = True


def due(step: int, every: int, recipe: Recipe) -> bool:
    """Whether something done every so many steps, and after the last, is to be done after this one."""
    return step == recipe.max_steps or (step > 0 and step % every == 0)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warmup, a plateau, and a linear fall to zero: a run may be prolonged until the fall begins."""
    rise = (step + 1) / max(recipe.warmup_steps, 1)
    fall = (recipe.max_steps - step) / max(recipe.decay_fraction * recipe.max_steps, 1)
    return recipe.learning_rate * min(rise, fall, 1.0)


class Step(NamedTuple):
    """What a step came to, the same on all processes but for the time."""

    loss: float  # mean per token, in nats
    grad_norm: float  # before it was clipped
    trouble: str | None  # why the weights were left as they are
    is_counted: bool  # whether the trouble counts: not while fp16 looks for its scale
    stop: bool  # whether a process has been asked to stop
    waited: float  # seconds for the data


def train_step(accelerator, model, optimizers, batches, recipe: Recipe, step: int, preemption: Preemption) -> Step:
    """One optimizer step over all processes and accumulated batches, or none if loss or gradient are not finite."""
    started = time.perf_counter()
    parts = list(islice(batches, recipe.gradient_accumulation_steps))
    waited = time.perf_counter() - started
    # For dropout; after the data, for a loader that starts draws a seed, too.
    seeds = np.random.SeedSequence((recipe.seed, step, accelerator.process_index))
    torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
    # Each token weighs the same wherever padding leaves fewer of them: all divide by the count over all processes.
    tokens = accelerator.reduce(sum((part["labels"][:, 1:] >= 0).sum() for part in parts))
    losses = []
    for index, part in enumerate(parts):
        with accelerator.no_sync(model) if index < len(parts) - 1 else nullcontext():
            loss = model(**part, num_items_in_batch=tokens, use_cache=False).loss
            # Gradients are averaged over the processes; the loss is a share of the sum.
            accelerator.backward(loss * accelerator.num_processes)
        losses.append(loss.detach().float())
    grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm))
    asked = torch.tensor(float(preemption.asked), device=accelerator.device)
    loss, asked = accelerator.reduce(torch.stack([sum(losses), asked])).tolist()

    # Sums over all processes: all come to the same decision.
    is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        if is_finite:
            optimizer.step()
        optimizer.zero_grad()
    trouble, is_counted = None, not is_finite
    if not is_finite:
        trouble = f"loss {loss}, gradient norm {grad_norm}, {name_crops(accelerator, losses, recipe, step)}"
    if accelerator.scaler is not None:
        is_counted &= not math.isfinite(loss) or accelerator.scaler.get_scale() <= 1
        accelerator.scaler.update()
    return Step(loss, grad_norm, trouble, is_counted, asked > 0, waited)


def name_crops(accelerator, losses: list[torch.Tensor], recipe: Recipe, step: int) -> str:
    """The crops, as indexes into `Crops`, of the batches whose own loss is not finite, or of all if each has one."""
    # Batches go round the processes in turn: [processes, passes] to the order of the crops.
    in_order = accelerator.gather(torch.stack(losses)).view(accelerator.num_processes, -1).T.flatten().tolist()
    suspects = [index for index, loss in enumerate(in_order) if not math.isfinite(loss)] or range(len(in_order))
    size, length = batch_shape(step, recipe)
    first = step * recipe.gradient_accumulation_steps * accelerator.num_processes
    spans = [((first + index) * size, (first + index + 1) * size - 1) for index in suspects]
    return f"crops {', '.join(f'{low} to {high}' for low, high in spans)} of {length} tokens"


class Share(Dataset):
    """One process's share of the windows. Blank ones fill it up: where a model is sharded, all must take equally many.

    Args:
        windows: Examples with `input_ids` and `labels`.
        index, count: Which process this is, and of how many.
    """

    def __init__(self, windows: Dataset, index: int, count: int):
        self.windows, self.index, self.count = windows, index, count

    def __len__(self) -> int:
        return -(-len(self.windows) // self.count)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        """Every `count`-th window; one without labels beyond the last."""
        place = place * self.count + self.index
        if place < len(self.windows):
            return self.windows[place]
        example = self.windows[0]
        return {**example, "labels": torch.full_like(example["labels"], IGNORED)}


def evaluate(accelerator, model, windows: Dataset, recipe: Recipe, preemption: Preemption) -> float | None:
    """Nats per token over the whole split: every window is scored by one process.

    Returns:
        The mean, the same on all processes; None if one of them was asked to stop.
    """
    model = accelerator.unwrap_model(model)
    share = Share(windows, accelerator.process_index, accelerator.num_processes)
    batch_size = 2 * recipe.batch_size  # there is no backward pass to leave room for
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    for start in range(0, len(share), 8 * batch_size):
        part = Subset(share, range(start, min(start + 8 * batch_size, len(share))))
        scored = negative_log_likelihood(model, part, batch_size, autocast=accelerator.autocast)
        totals += accelerator.reduce(torch.tensor([*scored, preemption.asked], dtype=torch.float64).to(totals.device))
        if totals[2]:
            return None
    nats, tokens, _ = totals.tolist()
    return nats / tokens


class Log:
    """One dense line to the screen, the same numbers to the tracker, and `run.json` with what the run is and was."""

    def __init__(self, accelerator, recipe: Recipe, config: MusicTxConfig):
        self.accelerator, self.recipe = accelerator, recipe
        crops = recipe.batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes
        self.tokens_per_step = crops * recipe.sequence_length
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
        packages = ("accelerate", "datasets", "miditok", "numpy", "symusic", "torch", "transformers")
        self.run = {
            "recipe": asdict(recipe),
            "shape": {name: getattr(config, name) for name in Shape.__annotations__},
            "corpus_fingerprint": load_report(recipe.corpus)["fingerprint"],
            "num_processes": accelerator.num_processes,
            "hardware": device,
            "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in packages},
            "git_commit": git_commit(),
            "validation_nats_per_token": {},
            "skipped_steps": {},
        }

    def begin(self, step: int):
        """The clock runs from here."""
        settings = {
            name: value for name, value in (self.run["recipe"] | self.run["shape"]).items() if value is not None
        }
        # What a killed run wrote after its last checkpoint is written again.
        purge = {"tensorboard": {"purge_step": step + 1}} if step else {}
        self.accelerator.init_trackers("music-tx", config=settings, init_kwargs=purge)
        self.first_step, self.started, self.paused, self.waited = step, time.perf_counter(), 0.0, 0.0
        on_main(self.accelerator, self.write, step)

    def train(self, step: int, done: Step):
        """Every `logging_steps` steps and at the last; and whenever a step was skipped.

        Raises:
            FloatingPointError: Too many were.
        """
        self.waited += done.waited
        if done.trouble:
            self.skip(step, done)
        if not due(step, self.recipe.logging_steps, self.recipe):
            return
        trained = time.perf_counter() - self.started - self.paused
        steps_per_second = (step - self.first_step) / trained
        left = int((self.recipe.max_steps - step) / steps_per_second)
        rate, speed = learning_rate(step - 1, self.recipe), steps_per_second * self.tokens_per_step
        self.accelerator.print(
            f"step {step}/{self.recipe.max_steps} | loss {done.loss:.4f} | lr {rate:.2e} | "
            f"grad norm {done.grad_norm:.2f} | {speed:,.0f} tokens/s | {self.waited / trained:.1%} waiting for data | "
            f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
            flush=True,
        )
        numbers = {"loss": done.loss, "learning_rate": rate, "grad_norm": done.grad_norm, "tokens_per_second": speed}
        numbers["data_wait"] = self.waited / trained
        self.accelerator.log({f"train/{name}": number for name, number in numbers.items()}, step=step)

    def skip(self, step: int, done: Step):
        """Say which step was skipped and why, and end the run if that happens too often."""
        if not done.is_counted:
            self.accelerator.print(f"step {step}/{self.recipe.max_steps} | skipped: fp16 lowers its scale")
            return
        self.run["skipped_steps"][str(step)] = done.trouble
        count, limit = len(self.run["skipped_steps"]), self.recipe.max_skipped_steps
        self.accelerator.print(f"step {step}/{self.recipe.max_steps} | skipped ({count} of {limit}): {done.trouble}")
        if count > limit:
            raise FloatingPointError(
                f"{count} steps had no finite loss and gradient, the last at step {step}: {done.trouble}; lower the "
                "learning rate or look at these crops"
            )

    def is_evaluated(self, step: int) -> bool:
        """Whether the validation split was scored after this step."""
        return str(step) in self.run["validation_nats_per_token"]

    def evaluation(self, step: int, nats_per_token: float) -> bool:
        """The validation split's nats per token; returns whether they are the fewest so far."""
        self.accelerator.print(f"step {step}/{self.recipe.max_steps} | validation {nats_per_token:.4f} nats per token")
        self.accelerator.log({"validation/nats_per_token": nats_per_token}, step=step)
        history = self.run["validation_nats_per_token"]
        history[str(step)] = round(nats_per_token, 4)
        return history[str(step)] == min(history.values())

    def picture(self, step: int, path: Path):
        """A sample's piano roll, to a tracker that takes pictures."""
        pixels = (255 * imread(path)[..., :3]).astype(np.uint8)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"sample": pixels[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({"sample": [pixels]}, step=step)
            elif tracker.name == "trackio":
                tracker.log({"sample": import_module("trackio").Image(pixels)}, step=step)

    @contextmanager
    def pause(self):
        """Time spent in here does not count against the training's speed."""
        start = time.perf_counter()
        yield
        self.paused += time.perf_counter() - start

    def write(self, step: int):
        """`run.json`, for the model card and for whoever asks later."""
        trained = time.perf_counter() - self.started - self.paused
        self.run |= {
            "steps": step,
            "tokens": step * self.tokens_per_step,
            "data_wait_share": round(self.waited / trained, 4),
        }
        path = Path(self.recipe.output_dir, "run.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(".run.json.unfinished")
        aside.write_text(json.dumps(self.run, indent=2) + "\n")
        aside.replace(path)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------

# What a checkpoint holds. The manifest is written last and says what the others must be.
STATE, RUN, MANIFEST = "state.safetensors", "run.json", "manifest.json"


def git_commit() -> str | None:
    """The commit of this code, marked `-dirty` where files were changed since; None outside of a checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    asked = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return asked.stdout.strip() or None


@contextmanager
def one_line_for(*errors: type[Exception], advice: str = ""):
    """A user's trouble ends in one line on stderr and exit code 2."""
    try:
        yield
    except errors as error:
        print(f"train.py: {' '.join(str(error).split())}{advice}", file=sys.stderr)
        raise SystemExit(2) from error


def on_main(accelerator, action, *arguments):
    """Let the main process write files, while the others wait; if it cannot, all end together."""
    error = None
    if accelerator.is_main_process:
        try:
            action(*arguments)
        except (OSError, SafetensorError) as caught:
            error = caught
    if accelerator.reduce(torch.tensor(float(error is not None), device=accelerator.device)) > 0:
        raise error or SystemExit(2)


@contextmanager
def written_aside(folder: Path):
    """A folder to fill, that takes its name when it is full: no moment finds it half-written under its name."""
    aside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk, what would not fit gives its room back


def numbered(output_dir: str, kind: str) -> list[Path]:
    """The folders `kind-STEP` of a run, oldest step first."""
    found = [path for path in Path(output_dir).glob(f"{kind}-*") if path.name.removeprefix(f"{kind}-").isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step that the name of a folder ends in."""
    return int(folder.name.rpartition("-")[2])


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as one process holds it; all processes must ask for the same ones in the same order."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous()


def training_state(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All that training changes, by what it is and the parameter it belongs to: `weight/...`, `exp_avg/...`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = {f"weight/{name}": gather(parameter) for parameter, name in names.items()}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            state |= {f"{kind}/{names[parameter]}": gather(value) for kind, value in values.items()}
    return state


@torch.no_grad()
def load_training_state(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], state: dict):
    """The inverse of `training_state`, into a model and optimizers of the same make."""
    parameters = dict(model.named_parameters())
    owners = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for label, tensor in state.items():
        kind, _, name = label.partition("/")
        parameter = parameters[name]
        tensor = tensor.to(parameter.device)
        if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
            tensor = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
        if kind == "weight":
            parameter.copy_(tensor)
        else:
            owners[parameter].state[parameter][kind] = tensor


def save_checkpoint(accelerator, model, optimizers, log: Log, recipe: Recipe, step: int):
    """All it takes to go on as if nothing had happened; then the oldest checkpoints beyond the limit go."""
    state = training_state(accelerator.unwrap_model(model), optimizers)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None

    def write():
        for left_by_a_kill in Path(recipe.output_dir).glob(".*-*.unfinished"):
            shutil.rmtree(left_by_a_kill)
        with written_aside(Path(recipe.output_dir, f"checkpoint-{step}")) as folder:
            save_file(state, folder / STATE)
            (folder / RUN).write_text(json.dumps({"step": step, "scaler": scaler, "run": log.run}))
            (folder / MANIFEST).write_text(json.dumps({name: digest(folder / name) for name in (STATE, RUN)}))
        older = [path for path in numbered(recipe.output_dir, "checkpoint") if step_of(path) <= step]
        for path in older[: -recipe.save_total_limit]:
            shutil.rmtree(path)

    on_main(accelerator, write)


def digest(path: Path) -> str:
    """The SHA-256 of a file, which is then on the disk, too, not on its way there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint holds what was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all(digest(folder / name) == manifest[name] for name in (STATE, RUN))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resume(accelerator, model, optimizers, log: Log, recipe: Recipe) -> int:
    """Load the checkpoint that is asked for, if one is; `latest` begins anew where there is none yet.

    Returns:
        How many steps it had done.

    Raises:
        ValueError: There is no whole checkpoint, or it is one of another training.
    """
    if recipe.resume_from_checkpoint is None:
        return 0
    is_latest = recipe.resume_from_checkpoint == "latest"
    found = numbered(recipe.output_dir, "checkpoint") if is_latest else [Path(recipe.resume_from_checkpoint)]
    torn = []
    while found and not is_whole(found[-1]):
        torn.append(found.pop())
        accelerator.print(f"{torn[-1]} is not a whole checkpoint")
    if torn and not found:
        raise ValueError(f'{torn[-1]} is not a whole checkpoint; give another one to resume from, or "latest".')
    step = 0
    if found:
        checkpoint = json.loads((found[-1] / RUN).read_text())
        refuse_another(found[-1], checkpoint["run"], log.run)
        load_training_state(accelerator.unwrap_model(model), optimizers, load_file(found[-1] / STATE))
        if accelerator.scaler is not None and checkpoint["scaler"]:
            accelerator.scaler.load_state_dict(checkpoint["scaler"])
        for history in ("validation_nats_per_token", "skipped_steps"):
            log.run[history] = checkpoint["run"][history]
        step = checkpoint["step"]
        if step > recipe.max_steps:
            raise ValueError(
                f"{found[-1]} has done {step} steps already; max_steps ({recipe.max_steps}) must be more."
            )
        accelerator.print(f"resuming from {found[-1]}")
    if len(set(accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist())) > 1:
        raise ValueError(f"output_dir ({recipe.output_dir}) must be a folder that all machines share.")
    return step


def refuse_another(folder: Path, then: dict, now: dict):
    """Raise ValueError if a checkpoint's run cannot be taken up by this one; the rest of a recipe may change."""
    fixed = ("optimizer", "lora_rank")
    was = then["shape"] | {name: then["recipe"][name] for name in fixed} | {"corpus": then["corpus_fingerprint"]}
    now = now["shape"] | {name: now["recipe"][name] for name in fixed} | {"corpus": now["corpus_fingerprint"]}
    for name in now:
        if was.get(name) != now[name]:
            raise ValueError(f"{folder} is of a run with {name} {was.get(name)}, and this one has {now[name]}.")


def gather_model(accelerator, model, config: MusicTxConfig, recipe: Recipe) -> MusicTxForCausalLM | None:
    """The model that is saved and makes samples: whole, adapters merged, apart from the training's; None elsewhere."""
    weights = {name: gather(weight) for name, weight in accelerator.unwrap_model(model).named_parameters()}
    if not accelerator.is_main_process:
        return None
    copy = MusicTxForCausalLM(config)
    copy = add_adapters(copy, recipe.lora_rank) if recipe.lora_rank else copy
    loaded = copy.load_state_dict(weights, strict=False)  # tied weights have one name here
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    copy = copy.merge_and_unload() if recipe.lora_rank else copy
    # How the finished model plays when nobody says otherwise; docs/decisions.md tells what top_p does to its music.
    copy.generation_config.update(do_sample=True, top_p=0.98, top_k=0)
    return copy.to(accelerator.device).eval()


def keep_evaluation(model, tokenizer, log: Log, recipe: Recipe, step: int, is_best: bool):
    """A sample to hear and see how far the training is, and the model itself if it is the best so far."""
    log.write(step)
    path = Path(recipe.output_dir, "samples", f"step-{step}")
    path.parent.mkdir(exist_ok=True)
    write_sample(model, tokenizer, recipe, path)
    log.picture(step, path.with_suffix(".png"))
    if not is_best:
        return
    best = Path(recipe.output_dir, f"best-{step}")
    with written_aside(best) as folder:
        write_model(model, tokenizer, recipe, folder)
    for other in numbered(recipe.output_dir, "best"):
        if other != best:
            shutil.rmtree(other)
    if recipe.push_to_hub:
        shutil.copy(Path(recipe.output_dir, "README.md"), best)
        publish(best, recipe, "--revision", "best")


def write_sample(model, tokenizer, recipe: Recipe, path: Path):
    """A piece as long as a crop, from nothing, as MIDI and piano roll; always from the same random numbers."""
    torch.manual_seed(recipe.seed)
    (ids,) = generate_music(model, tokenizer, seconds=None, max_new_tokens=recipe.sequence_length - 1)
    score = tokenizer.to_score(ids)
    score.dump_midi(path.with_suffix(".mid"))
    piano_roll(score, path.with_suffix(".png"))


def write_model(model, tokenizer, recipe: Recipe, folder: Path):
    """Model, tokenizer, pipeline and their code in one folder that the Auto classes and `pipeline` load."""
    dtype = getattr(torch, recipe.save_dtype)
    own = (item for item in model.state_dict().items() if item[0] not in model.all_tied_weights_keys)
    pipeline = MidiGenerationPipeline(model=model, tokenizer=tokenizer, device=model.device)
    pipeline.save_pretrained(folder, state_dict={name: weight.to(dtype) for name, weight in own})


def publish(folder: Path, recipe: Recipe, *options: str) -> bool:
    """Send a folder to the Hub by the command for it, which says itself what went wrong; returns whether it went well.

    A process of its own, for the hub room may know the others and none knows it.
    """
    command = [sys.executable, "-m", "hub.publish", folder.resolve(), recipe.push_to_hub, *options]
    return subprocess.run(command, cwd=Path(__file__).parent).returncode == 0


def finish(model, tokenizer, log: Log, recipe: Recipe, step: int):
    """The finished model, where the recipe wants it, and what the run was."""
    write_model(model, tokenizer, recipe, Path(recipe.output_dir))
    log.write(step)
    print(f"model and tokenizer saved to {recipe.output_dir}")
    if recipe.push_to_hub and not publish(Path(recipe.output_dir), recipe):
        raise OSError(f"{recipe.output_dir} is finished but was not sent to the Hub")


if __name__ == "__main__":
    main(sys.argv[1:])
