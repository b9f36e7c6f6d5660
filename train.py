"""Train a Music Transformer on a prepared corpus: `accelerate launch train.py recipes/maestro_small.yaml`.

A recipe is a YAML file of the fields below and of `MusicTxConfig`'s; `--field value` on the command line wins over it.
Several processes, on CPU too: `accelerate launch --multi_gpu --num_processes 2 train.py ...`.
"""

import json
import os
import shutil
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, make_dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import accelerate
import datasets
import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader, Subset
from transformers import HfArgumentParser

from corpus.dataset import Crops, EvaluationWindows, PaperAugmentation, load_corpus
from evaluation.likelihood import negative_log_likelihood
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer


@dataclass
class Recipe:
    """Everything a training does, but for the shape of the model."""

    corpus: str = field(metadata={"help": "folder that corpus.prepare wrote"})
    output_dir: str = field(metadata={"help": "where checkpoints, logs and the finished model go"})
    sequence_length: int = field(default=1024, metadata={"help": "tokens per crop"})
    batch_size: int = field(default=4, metadata={"help": "crops per process and forward pass"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimizer step"})
    max_steps: int = field(default=6000, metadata={"help": "optimizer steps"})
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata={"help": "for the matrices of the layers"})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "peak learning rate"})
    warmup_steps: int = field(default=200, metadata={"help": "steps of linear rise to the peak"})
    decay_fraction: float = field(default=0.4, metadata={"help": "share of the steps, at the end, that fall to zero"})
    weight_decay: float = field(default=0.1, metadata={"help": "of matrices; biases are not decayed"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second moment decay"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    augment: bool = field(default=True, metadata={"help": "transpose by -3..+3 semitones, stretch time by up to 5%%"})
    mixed_precision: Literal["no", "bf16", "fp16"] = field(default="no", metadata={"help": "of the matrix products"})
    save_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of the finished model's weights on disk; they load as float32"}
    )
    seed: int = field(default=0, metadata={"help": "of weights, crops and dropout"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that prepare crops"})
    logging_steps: int = field(default=10, metadata={"help": "steps between log lines"})
    eval_steps: int = field(default=2000, metadata={"help": "steps between evaluations of the validation split"})
    save_steps: int = field(default=500, metadata={"help": "steps between checkpoints"})
    save_total_limit: int = field(default=2, metadata={"help": "how many checkpoints are kept"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": '"latest", or a checkpoint folder'})


# The shape of the model: MusicTxConfig's own fields, less those that the tokenizer decides.
Shape = make_dataclass(
    "Shape",
    [
        (name, float if kind == float | int else kind, field(default=getattr(MusicTxConfig, name)))
        for name, kind in MusicTxConfig.__annotations__.items()
        if not name.endswith("token_id") and name not in ("vocab_size", "use_cache")
    ],
)


def main(argv: list[str]):
    """The whole training, in order."""
    recipe, shape = parse(argv)
    accelerator = Accelerator(
        # Said outright, or several processes without an accelerator would not know of each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=recipe.mixed_precision,
        log_with="tensorboard",
        project_dir=recipe.output_dir,
    )
    corpus = load_corpus(recipe.corpus)
    tokenizer = MusicTxTokenizer.from_pretrained(Path(recipe.corpus) / "tokenizer")
    model = make_model(tokenizer, shape, recipe.seed)
    set_seed(recipe.seed, device_specific=True)  # dropout differs between processes, weights do not
    model, *optimizers = accelerator.prepare(model, *make_optimizers(model, recipe))
    step = resume(accelerator, recipe)
    loader = accelerator.prepare(make_loader(corpus["train"], tokenizer, recipe, step, accelerator.num_processes))
    windows = EvaluationWindows(corpus["validation"], recipe.sequence_length)
    log = Log(accelerator, recipe, shape, step)

    batches = iter(loader)
    while step < recipe.max_steps:
        loss, grad_norm = train_step(accelerator, model, optimizers, batches, recipe, step)
        step += 1
        log.train(step, loss, grad_norm)
        finished = step == recipe.max_steps
        with log.pause():
            if step % recipe.save_steps == 0 or finished:
                save_checkpoint(accelerator, recipe, step)
            if step % recipe.eval_steps == 0 or finished:
                log.evaluation(step, evaluate(accelerator, model, windows, recipe))

    save_model(accelerator, model, tokenizer, recipe)
    log.write(step, corpus_fingerprint(recipe.corpus))
    accelerator.wait_for_everyone()  # none takes the others' connections down while they still write
    accelerator.end_training()


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
    try:
        MusicTxConfig(**asdict(shape))
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


def make_model(tokenizer, shape: Shape, seed: int) -> MusicTxForCausalLM:
    """A new model for the tokenizer's ids; every process draws the same weights."""
    torch.manual_seed(seed)
    return MusicTxForCausalLM(
        MusicTxConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **asdict(shape),
        )
    )


def make_optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, if the recipe wants it, and AdamW for everything else.

    Biases and normalisation are not decayed.

    Source: Jordan et al. 2024; updates scaled to AdamW's size, so that one learning rate serves both, as in Liu et al.
    2025 (arXiv 2502.16982).
    """
    parameters = list(model.named_parameters())
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


def make_loader(pieces, tokenizer, recipe: Recipe, step: int, num_processes: int) -> DataLoader:
    """All the crops from a step on to the last, in order: which crop a step sees depends on the seed alone."""
    crops = Crops(
        pieces, recipe.sequence_length, recipe.seed, augment=PaperAugmentation(tokenizer) if recipe.augment else None
    )
    per_step = recipe.batch_size * recipe.gradient_accumulation_steps * num_processes
    return DataLoader(
        Subset(crops, range(step * per_step, recipe.max_steps * per_step)),
        recipe.batch_size,
        num_workers=recipe.dataloader_num_workers,
        generator=torch.Generator(),  # a loader draws a seed when it starts, which must not come out of dropout's
        pin_memory=torch.cuda.is_available(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warmup, a plateau, and a linear fall to zero: a run may be prolonged until the fall begins."""
    rise = (step + 1) / max(recipe.warmup_steps, 1)
    fall = (recipe.max_steps - step) / max(recipe.decay_fraction * recipe.max_steps, 1)
    return recipe.learning_rate * min(rise, fall, 1.0)


def train_step(accelerator, model, optimizers, batches, recipe: Recipe, step: int) -> tuple[float, float]:
    """One optimizer step over all processes and accumulated batches.

    Returns:
        The mean loss per token in nats, and the norm of the gradient before it was clipped.
    """
    parts = list(islice(batches, recipe.gradient_accumulation_steps))
    # Each token weighs the same wherever padding leaves fewer of them: all divide by the count over all processes.
    tokens = accelerator.reduce(sum((part["labels"][:, 1:] >= 0).sum() for part in parts))
    total = torch.zeros((), device=accelerator.device)
    for index, part in enumerate(parts):
        with accelerator.no_sync(model) if index < len(parts) - 1 else nullcontext():
            loss = model(**part, num_items_in_batch=tokens, use_cache=False).loss
            # Gradients are averaged over the processes; the loss is a share of the sum.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.reduce(total).item(), float(grad_norm)


def evaluate(accelerator, model, windows: EvaluationWindows, recipe: Recipe) -> float:
    """Nats per token over the whole split: every process scores its share, and none is scored twice."""
    share = Subset(windows, range(accelerator.process_index, len(windows), accelerator.num_processes))
    part = negative_log_likelihood(
        accelerator.unwrap_model(model), share, recipe.batch_size * 2, autocast=accelerator.autocast
    )
    nats, tokens = accelerator.reduce(torch.tensor(part, dtype=torch.float64, device=accelerator.device)).tolist()
    return nats / tokens


class Log:
    """One dense line to the screen, the same numbers to the tracker, and `run.json` with what the run was."""

    def __init__(self, accelerator, recipe: Recipe, shape: Shape, step: int):
        self.accelerator, self.recipe = accelerator, recipe
        self.first_step, self.started, self.waited = step, time.perf_counter(), 0.0
        self.tokens_per_step = (
            recipe.sequence_length * recipe.batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes
        )
        self.run = {
            "recipe": asdict(recipe),
            "shape": asdict(shape),
            "num_processes": accelerator.num_processes,
            "validation_nats_per_token": {},
        }
        settings = {k: v for k, v in (asdict(recipe) | asdict(shape)).items() if v is not None}
        accelerator.init_trackers("logs", config=settings)

    def train(self, step: int, loss: float, grad_norm: float):
        """Every `logging_steps` steps and at the last."""
        if step % self.recipe.logging_steps and step != self.recipe.max_steps:
            return
        steps_per_second = (step - self.first_step) / (time.perf_counter() - self.started - self.waited)
        left = int((self.recipe.max_steps - step) / steps_per_second)
        rate, speed = learning_rate(step - 1, self.recipe), steps_per_second * self.tokens_per_step
        self.accelerator.print(
            f"step {step}/{self.recipe.max_steps} | loss {loss:.4f} | lr {rate:.2e} | grad norm {grad_norm:.2f} | "
            f"{speed:,.0f} tokens/s | {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
            flush=True,
        )
        numbers = {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm, "tokens_per_second": speed}
        self.accelerator.log({f"train/{name}": number for name, number in numbers.items()}, step=step)

    def evaluation(self, step: int, nats_per_token: float):
        """The validation split's nats per token."""
        self.accelerator.print(f"step {step}/{self.recipe.max_steps} | validation {nats_per_token:.4f} nats per token")
        self.accelerator.log({"validation/nats_per_token": nats_per_token}, step=step)
        self.run["validation_nats_per_token"][step] = round(nats_per_token, 4)

    @contextmanager
    def pause(self):
        """Time spent in here does not count against the training's speed."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def write(self, step: int, corpus_fingerprint: str):
        """`run.json`, for the model card and for whoever asks later."""
        self.run |= {
            "steps": step,
            "tokens": step * self.tokens_per_step,
            "corpus_fingerprint": corpus_fingerprint,
            "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
            "versions": {
                package.__name__: package.__version__ for package in (accelerate, datasets, torch, transformers)
            },
        }
        if self.accelerator.is_main_process:
            path = Path(self.recipe.output_dir) / "run.json"
            path.write_text(json.dumps(self.run, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def corpus_fingerprint(corpus: str) -> str:
    """What `corpus.prepare` says that the corpus holds: the same for the same pieces and tokenizer."""
    return json.loads((Path(corpus) / "report.json").read_text())["fingerprint"]


def checkpoints(output_dir: str) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def save_checkpoint(accelerator, recipe: Recipe, step: int):
    """All it takes to go on as if nothing had happened: written aside, renamed when whole, then the oldest removed."""
    folder = Path(recipe.output_dir) / f"checkpoint-{step}"
    aside = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(aside)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
        for old in checkpoints(recipe.output_dir)[: -recipe.save_total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator, recipe: Recipe) -> int:
    """Load a checkpoint if one is asked for; returns how many steps it had done.

    Raises:
        FileNotFoundError: The checkpoint does not exist. `latest` begins anew where there is none yet.
    """
    if recipe.resume_from_checkpoint is None:
        return 0
    if recipe.resume_from_checkpoint == "latest":
        found = checkpoints(recipe.output_dir)
        if not found:
            return 0
        folder = found[-1]
    else:
        folder = Path(recipe.resume_from_checkpoint)
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder} is no checkpoint; give a checkpoint-STEP folder, or "latest".')
    accelerator.load_state(folder)
    accelerator.print(f"resuming from {folder}")
    return int(folder.name.removeprefix("checkpoint-"))


def save_model(accelerator, model, tokenizer, recipe: Recipe):
    """The finished model with its tokenizer and code, in one folder that the Auto classes load."""
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        dtype = getattr(torch, recipe.save_dtype)
        own = (item for item in model.state_dict().items() if item[0] not in model.all_tied_weights_keys)
        weights = {name: weight.to(dtype) for name, weight in own}
        model.save_pretrained(recipe.output_dir, state_dict=weights)
        tokenizer.save_pretrained(recipe.output_dir)
        accelerator.print(f"model and tokenizer saved to {recipe.output_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
