"""Train a Music Transformer on a prepared corpus: `accelerate launch train.py recipes/maestro_small.yaml`.

A recipe is a YAML file with fields of `training.recipe.Recipe` and of `MusicTxConfig`; `--field value` on the command
line overrides it. Several processes, on CPU too: `accelerate launch --multi_gpu --num_processes 2 train.py ...`.
docs/training.md explains the rest, from fine-tuning to resuming.

No random state is saved: the crops and the dropout of a step depend only on the seed, the step and the process.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path

from training.recipe import Recipe, parse

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    parse(sys.argv[1:], __doc__)

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from corpus.atomic_files import atomic_folder, exclusive
from corpus.dataset import IGNORED, Crops, CropTransform, EvaluationWindows, load_corpus, load_tokenizer
from corpus.plain_text import printable
from evaluation.likelihood import negative_log_likelihood
from evaluation.rendering import piano_roll
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MidiGenerationPipeline, MusicTxTokenizer, generate_music
from training.checkpoints import (
    check_skipped_steps,
    gather,
    numbered,
    remove_oldest,
    resume,
    save_checkpoint,
    way_back,
)
from training.log import Step, TrainingLog, on_main
from training.optimizers import make_optimizers, schedule

# Seconds for a step and a checkpoint, once the launcher is gone.
GRACE_SECONDS = 60


def main(argv: list[str] | None = None) -> int:
    """Run the training; returns the exit code, 143 or 130 if a signal stopped it."""
    recipe, config = parse(sys.argv[1:] if argv is None else argv, __doc__)
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=end_after, args=(os.getppid(),), daemon=True).start()
    try:
        with ExitStack() as lock:
            return train(recipe, config, lock)
    except KeyboardInterrupt:  # before the loop, or for the second time
        print(f"train.py: interrupted; what {recipe.output_dir} holds is complete", file=sys.stderr)
        return 128 + signal.SIGINT


def train(recipe: Recipe, config: dict, lock: ExitStack) -> int:
    """Train as the recipe says.

    Args:
        recipe: The recipe.
        config: The given fields of `MusicTxConfig`.
        lock: Receives the lock on the output folder, which the caller releases.

    Returns:
        The exit code, as for `main`.
    """
    with one_line_for(OSError, ValueError):
        accelerator = make_accelerator(recipe)
        corpus = load_corpus(recipe.corpus)
        windows = EvaluationWindows(corpus["validation"], recipe.sequence_length)
        tokenizer = load_tokenizer(recipe.corpus)
        start = load_model(tokenizer, config, recipe) if recipe.init_from else make_model(tokenizer, config, recipe)
        model = make_trainable(start, recipe)
        model, *optimizers = accelerator.prepare(model, *make_optimizers(model, recipe))
        optimizers = [optimizer.optimizer for optimizer in optimizers]  # train_step decides whether they step
        log = TrainingLog(accelerator, recipe, start.config)
        on_main(accelerator, lock.enter_context, exclusive(Path(recipe.output_dir, ".lock")))
        step = resume(accelerator, model, optimizers, log, recipe)
        loaders = make_loaders(corpus["train"], tokenizer, recipe, step, accelerator.num_processes)

    advice = f"; the checkpoints in {recipe.output_dir} are complete: continue with --resume_from_checkpoint latest."
    with (
        one_line_for(FloatingPointError),
        one_line_for(OSError, SafetensorError, advice=advice),
        Preemption() as preemption,
    ):
        log.begin(step)
        batches = chain.from_iterable([accelerator.prepare(loader) for loader in loaders])
        saved, stop, is_healthy = step, False, True
        while not stop:
            is_first = step == 0 and recipe.init_from is not None  # to compare the tuned model with
            if (is_first or recipe.is_due(step, recipe.eval_steps)) and not log.is_evaluated(step):
                with log.pause():
                    nats_per_token = evaluate(accelerator, model, windows, recipe, preemption)
                    stop = nats_per_token is None
                    if not stop:
                        is_best = log.evaluation(step, nats_per_token)
                        eval_model = gather_model(accelerator, model, start.config, recipe)
                        on_main(accelerator, save_evaluation, eval_model, tokenizer, log, recipe, step, is_best)
            elif step == recipe.max_steps:
                break
            else:
                done = train_step(accelerator, model, optimizers, batches, recipe, step, preemption)
                step, stop = step + 1, done.stop
                log.train(step, done)
                check_skipped_steps(log, recipe)
                # Weights that give no finite loss must not replace checkpoints that do.
                is_healthy = not (done.skip_reason and done.is_counted)
                if is_healthy and saved == step - 1:
                    on_main(accelerator, remove_oldest, log, recipe, saved)
                if recipe.is_due(step, recipe.save_steps) and is_healthy:
                    with log.pause():
                        save_checkpoint(accelerator, model, optimizers, log, recipe, step)
                    saved = step

        if stop:
            if saved != step and is_healthy:
                save_checkpoint(accelerator, model, optimizers, log, recipe, step)
            accelerator.print(
                f"{preemption.name}: stopped after step {step}; continue with --resume_from_checkpoint latest."
            )
        elif not log.is_finite(step):
            raise FloatingPointError(f"the trained model has no finite loss on validation; {way_back(log, recipe)}")
        else:
            eval_model = gather_model(accelerator, model, start.config, recipe)
            on_main(accelerator, finish, eval_model, tokenizer, log, recipe, step)

        # Delete the wrapper of several processes before their group. Otherwise its destructor would hold the GIL while
        # it waits for the group's threads, which may wait for the GIL.
        del model
        accelerator.free_memory()
        accelerator.end_training()
    return 128 + preemption.number if stop else 0


# ---------------------------------------------------------------------------------------------------------------------
# Before the loop
# ---------------------------------------------------------------------------------------------------------------------


def end_after(launcher: int):
    """End this process soon after its launcher, which ends its processes itself unless it is killed.

    Args:
        launcher: The process that started this one.
    """
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # saves a checkpoint
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Validate the recipe against the hardware and build the Accelerator.

    Raises:
        ValueError: The hardware cannot run the recipe.
    """
    cpu = not torch.accelerator.is_available()
    shards = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    if recipe.mixed_precision == "fp16" and cpu:
        raise ValueError("mixed_precision (fp16) needs a GPU; on CPU use bf16 or no.")
    if shards and cpu:
        raise ValueError("FSDP needs GPUs; on CPU launch with --multi_gpu --num_processes N, without its config file.")
    if shards and recipe.optimizer == "muon":
        raise ValueError("optimizer (muon) needs whole matrices, and FSDP shards them; use --optimizer adamw.")
    if recipe.report_to != "none" and find_spec(recipe.report_to) is None:
        raise ValueError(f"{recipe.report_to} is not installed; pip install {recipe.report_to}, or --report_to none.")
    if recipe.push_to_hub and not Path(recipe.output_dir, "README.md").is_file():
        raise ValueError(
            f"push_to_hub ({recipe.push_to_hub}) needs a model card that names a license; write {recipe.output_dir}"
            "/README.md first."
        )
    disable_progress_bar()
    return Accelerator(
        # Given explicitly: otherwise several processes without an accelerator would not form a group.
        cpu=cpu,
        mixed_precision=recipe.mixed_precision,
        log_with=None if recipe.report_to == "none" else recipe.report_to,
        project_config=ProjectConfiguration(recipe.output_dir, logging_dir=str(Path(recipe.output_dir, "logs"))),
    )


def make_model(tokenizer, config: dict, recipe: Recipe) -> MusicTxForCausalLM:
    """Create a model for the tokenizer's ids, with the same weights on every process."""
    torch.manual_seed(recipe.seed)
    return MusicTxForCausalLM(
        MusicTxConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **config,
        )
    )


def load_model(tokenizer, given: dict, recipe: Recipe) -> MusicTxForCausalLM:
    """Load the model to fine-tune; of the given fields of its configuration only dropout may differ.

    Raises:
        OSError: The model cannot be loaded.
        ValueError: It has another type or configuration, or another vocabulary than the corpus.
    """
    name = recipe.init_from
    config = AutoConfig.from_pretrained(name)
    if config.model_type != MusicTxConfig.model_type:
        raise ValueError(f"{name} is a model of type {config.model_type}; init_from takes {MusicTxConfig.model_type}.")
    for key, value in given.items():
        if value != getattr(config, key) and not key.endswith("_dropout"):
            raise ValueError(f"{key} ({value}) is not that of {name} ({getattr(config, key)}); leave it out.")
    vocabulary, needed = MusicTxTokenizer.from_pretrained(name).get_vocab(), tokenizer.get_vocab()
    if vocabulary.items() - needed.items():
        raise ValueError(
            f"{name} has another vocabulary ({len(vocabulary)} tokens) than {recipe.corpus} ({len(tokenizer)} "
            "tokens); prepare the corpus with the model's tokenizer, or train from scratch."
        )
    dropout = {key: value for key, value in given.items() if key.endswith("_dropout")}
    model = MusicTxForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **dropout)
    if len(needed) > len(vocabulary):
        # Tokens behind the model's own, as those of controls: their embeddings begin as all do.
        torch.manual_seed(recipe.seed)
        model.resize_token_embeddings(len(needed), mean_resizing=False)
    return model


def make_trainable(model: MusicTxForCausalLM, recipe: Recipe) -> torch.nn.Module:
    """Apply the attention, gradient checkpointing, adapters and compilation, as the recipe says.

    Raises:
        ValueError: There is no such attention, or it needs what is not installed.
    """
    if recipe.attn_implementation:
        model.set_attn_implementation(recipe.attn_implementation)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model = add_adapters(model, recipe.lora_rank) if recipe.lora_rank else model
    if recipe.compile:
        model.compile()
    return model


def add_adapters(model: MusicTxForCausalLM, rank: int) -> torch.nn.Module:
    """Add LoRA adapters to the matrices of the layers and freeze the rest, the relative embeddings included.

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError(f"lora_rank ({rank}) needs peft; pip install peft.") from None
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=r".*_proj"))


def make_loaders(pieces, tokenizer, recipe: Recipe, step: int, num_processes: int) -> list[DataLoader]:
    """Return loaders for the crops from a step to the last, in order: the seed alone decides which crop a step gets.

    Short crops come first if the recipe says so: their attention costs less, and far distances are learned last.
    """
    loaders = []
    for end in (*recipe.short_ends(), recipe.max_steps):
        if step >= end:
            continue
        batch_size, length = recipe.batch_shape(step)
        crops = Crops(
            pieces,
            length,
            recipe.seed,
            transform=make_transform(tokenizer, length, recipe),
            num_processes=num_processes,
            batch_size=batch_size,
        )
        per_step = batch_size * recipe.gradient_accumulation_steps * num_processes
        loader = DataLoader(
            Subset(crops, range(step * per_step, end * per_step)),
            batch_size,
            num_workers=recipe.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )
        loaders.append(loader)
        step = end
    return loaders


def make_transform(tokenizer, length: int, recipe: Recipe) -> CropTransform | None:
    """Return what alters the crops of a length, None if the recipe leaves them as they are."""
    if not (recipe.augment or recipe.control_fraction or recipe.infill_fraction):
        return None
    return CropTransform(tokenizer, length, recipe.augment, recipe.control_fraction, recipe.infill_fraction)


def ignore_signals(_):
    """Keep a worker alive when the whole process group is signalled: the training still needs its crops."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


class Preemption:
    """Records SIGTERM, which preemption sends, and Ctrl-C; the training then ends after the current step."""

    number = signal.SIGTERM
    stop_requested = False

    def __enter__(self):
        self.previous = {number: signal.signal(number, self.record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def record(self, number, _):
        """Handle a signal; a second Ctrl-C interrupts at once."""
        self.number, self.stop_requested = number, True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def name(self) -> str:
        """The signal in words."""
        return "Ctrl-C" if self.number == signal.SIGINT else "SIGTERM"


def train_step(accelerator, model, optimizers, batches, recipe: Recipe, step: int, preemption: Preemption) -> Step:
    """Do an optimizer step over all processes and accumulated batches; skip it if loss or gradient are not finite."""
    started = time.perf_counter()
    parts = list(islice(batches, recipe.gradient_accumulation_steps))
    waited = time.perf_counter() - started
    # For dropout; after the data, because a loader that starts draws a seed too.
    seeds = np.random.SeedSequence((recipe.seed, step, accelerator.process_index))
    torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
    # Divide by the number of tokens over all processes, so that each token has the same weight despite padding.
    tokens = accelerator.reduce(sum((part["labels"][:, 1:] >= 0).sum() for part in parts))
    losses = []
    for index, part in enumerate(parts):
        with accelerator.no_sync(model) if index < len(parts) - 1 else nullcontext():
            loss = model(**part, num_items_in_batch=tokens, use_cache=False).loss
            # Gradients are averaged over the processes, and each loss is a share of the sum.
            accelerator.backward(loss * accelerator.num_processes)
        losses.append(loss.detach().float())
    grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm))
    stop = torch.tensor(float(preemption.stop_requested), device=accelerator.device)
    loss, stop = accelerator.reduce(torch.stack([sum(losses), stop])).tolist()

    # Sums over all processes, so all decide the same.
    is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, recipe)
        if is_finite:
            optimizer.step()
        optimizer.zero_grad()
    skip_reason, is_counted = None, not is_finite
    if not is_finite:
        skip_reason = f"loss {loss}, gradient norm {grad_norm}, {name_crops(accelerator, losses, recipe, step)}"
    if accelerator.scaler is not None:
        is_counted &= not math.isfinite(loss) or accelerator.scaler.get_scale() <= 1
        accelerator.scaler.update()
    return Step(loss, grad_norm, skip_reason, is_counted, stop > 0, waited)


def name_crops(accelerator, losses: list[torch.Tensor], recipe: Recipe, step: int) -> str:
    """Name the crops, by index into `Crops`, of batches without a finite loss; all crops if every loss is finite."""
    # Batches alternate between the processes: [processes, passes] to the order of the crops.
    in_order = accelerator.gather(torch.stack(losses)).view(accelerator.num_processes, -1).T.flatten().tolist()
    suspects = [index for index, loss in enumerate(in_order) if not math.isfinite(loss)] or range(len(in_order))
    size, length = recipe.batch_shape(step)
    first = step * recipe.gradient_accumulation_steps * accelerator.num_processes
    spans = [((first + index) * size, (first + index + 1) * size - 1) for index in suspects]
    return f"crops {', '.join(f'{low} to {high}' for low, high in spans)} of {length} tokens"


class EvalShard(Dataset):
    """The windows that one process evaluates, padded with windows without labels: sharded models need equal counts.

    Args:
        windows: Examples with `input_ids` and `labels`.
        index, count: Index and number of the processes.
    """

    def __init__(self, windows: Dataset, index: int, count: int):
        self.windows, self.index, self.count = windows, index, count

    def __len__(self) -> int:
        return -(-len(self.windows) // self.count)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return every `count`-th window; beyond the last, one without labels."""
        index = index * self.count + self.index
        if index < len(self.windows):
            return self.windows[index]
        example = self.windows[0]
        return {**example, "labels": torch.full_like(example["labels"], IGNORED)}


def evaluate(accelerator, model, windows: Dataset, recipe: Recipe, preemption: Preemption) -> float | None:
    """Score the validation split, each window on one process.

    Returns:
        Nats per token, the same on all processes; None if one of them received a signal to stop.
    """
    model = accelerator.unwrap_model(model)
    shard = EvalShard(windows, accelerator.process_index, accelerator.num_processes)
    batch_size = 2 * recipe.batch_size  # no backward pass needs memory
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    for start in range(0, len(shard), 8 * batch_size):
        part = Subset(shard, range(start, min(start + 8 * batch_size, len(shard))))
        scored = negative_log_likelihood(model, part, batch_size, autocast=accelerator.autocast)
        sums = torch.tensor([*scored, preemption.stop_requested], dtype=torch.float64)
        totals += accelerator.reduce(sums.to(totals.device))
        if totals[2]:
            return None
    nats, tokens, _ = totals.tolist()
    return nats / tokens


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def one_line_for(*errors: type[Exception], advice: str = ""):
    """Turn errors that the user can fix into one line on stderr and exit code 2."""
    try:
        yield
    except errors as error:
        text = str(error)
        if "DataLoader worker" in text:  # that of a worker ends with its traceback, whose last line is the message
            text = text.rstrip().splitlines()[-1].partition(": ")[2]
        print(printable(f"train.py: {' '.join(text.split())}{advice}"), file=sys.stderr)
        raise SystemExit(2) from error


def gather_model(accelerator, model, config: MusicTxConfig, recipe: Recipe) -> MusicTxForCausalLM | None:
    """Return a complete copy of the model, adapters merged, on the main process; None on the others."""
    weights = {name: gather(weight) for name, weight in accelerator.unwrap_model(model).named_parameters()}
    if not accelerator.is_main_process:
        return None
    copy = MusicTxForCausalLM(config)
    copy = add_adapters(copy, recipe.lora_rank) if recipe.lora_rank else copy
    loaded = copy.load_state_dict(weights, strict=False)  # tied weights have one name here
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    copy = copy.merge_and_unload() if recipe.lora_rank else copy
    # The defaults of the finished model; docs/decisions.md has the comparison of min_p and top_p.
    copy.generation_config.update(do_sample=True, min_p=0.02, top_k=0)
    return copy.to(accelerator.device).eval()


def save_evaluation(model, tokenizer, log: TrainingLog, recipe: Recipe, step: int, is_best: bool):
    """Write a sample, and the model itself if it is the best so far."""
    log.write(step)
    path = Path(recipe.output_dir, "samples", f"step-{step}")
    path.parent.mkdir(exist_ok=True)
    write_sample(model, tokenizer, recipe, path)
    log.picture(step, path.with_suffix(".png"))
    if not is_best:
        return
    best = Path(recipe.output_dir, f"best-{step}")
    with atomic_folder(best) as folder:
        write_model(model, tokenizer, recipe, folder)
    for other in numbered(recipe.output_dir, "best"):
        if other != best:
            shutil.rmtree(other)
    if recipe.push_to_hub and step > 0:
        shutil.copy(Path(recipe.output_dir, "README.md"), best)
        publish(best, recipe, "--revision", "best")


def write_sample(model, tokenizer, recipe: Recipe, path: Path):
    """Write a piece as long as a crop, from nothing, as MIDI and piano roll; always with the same seed."""
    torch.manual_seed(recipe.seed)
    (ids,) = generate_music(model, tokenizer, seconds=None, max_new_tokens=recipe.sequence_length - 1)
    score = tokenizer.to_score(ids)
    score.dump_midi(path.with_suffix(".mid"))
    piano_roll(score, path.with_suffix(".png"))


def write_model(model, tokenizer, recipe: Recipe, folder: Path):
    """Write model, tokenizer, pipeline and their code to one folder that the Auto classes and `pipeline` load."""
    dtype = getattr(torch, recipe.save_dtype)
    own = (item for item in model.state_dict().items() if item[0] not in model.all_tied_weights_keys)
    pipeline = MidiGenerationPipeline(model=model, tokenizer=tokenizer, device=model.device)
    pipeline.save_pretrained(folder, state_dict={name: weight.to(dtype) for name, weight in own})


def publish(folder: Path, recipe: Recipe, *options: str) -> bool:
    """Publish a folder with the command `hub.publish`, which prints its own errors; returns whether it succeeded.

    A separate process, because only the hub room may import the rooms that publishing needs.
    """
    command = [sys.executable, "-m", "hub.publish", folder.resolve(), recipe.push_to_hub, *options]
    return subprocess.run(command, cwd=Path(__file__).parent).returncode == 0


def finish(model, tokenizer, log: TrainingLog, recipe: Recipe, step: int):
    """Write the finished model and the record of the run."""
    write_model(model, tokenizer, recipe, Path(recipe.output_dir))
    remove_oldest(log, recipe, step)
    log.write(step)
    print(f"model and tokenizer saved to {recipe.output_dir}")
    if recipe.push_to_hub and not publish(Path(recipe.output_dir), recipe):
        raise OSError(f"{recipe.output_dir} is finished but was not published")


if __name__ == "__main__":
    sys.exit(main())
