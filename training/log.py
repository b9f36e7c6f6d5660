"""The log of a training: lines on the screen, the numbers of the tracker, and `run.json`."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.image import imread
from safetensors import SafetensorError

from corpus.atomic_files import write_atomically
from corpus.dataset import load_report
from modeling_music_tx import MusicTxConfig
from training.optimizers import schedule
from training.recipe import CONFIG_FIELDS, Recipe


class Step(NamedTuple):
    """The result of an optimizer step, the same on all processes except for the time."""

    loss: float  # mean per token, in nats
    grad_norm: float  # before it was clipped
    skip_reason: str | None  # why the weights were not updated
    is_counted: bool  # whether the skip counts: not while fp16 lowers its loss scale
    stop: bool  # whether a process received a signal to stop
    waited: float  # seconds spent waiting for data


class TrainingLog:
    """One line per logged step, the same numbers for the tracker, and `run.json` as the record of the run."""

    def __init__(self, accelerator, recipe: Recipe, config: MusicTxConfig):
        self.accelerator, self.recipe = accelerator, recipe
        crops = recipe.batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes
        self.tokens_per_step = crops * recipe.sequence_length
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
        packages = ("accelerate", "datasets", "miditok", "numpy", "symusic", "torch", "transformers")
        self.run = {
            "recipe": asdict(recipe),
            "shape": {name: getattr(config, name) for name in CONFIG_FIELDS},
            "corpus_fingerprint": load_report(recipe.corpus)["fingerprint"],
            "num_processes": accelerator.num_processes,
            "hardware": device,
            "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in packages},
            "git_commit": git_commit(),
            "validation_nats_per_token": {},
            "skipped_steps": {},
        }

    def begin(self, step: int):
        """Start the trackers and the clock."""
        settings = {
            name: value for name, value in (self.run["recipe"] | self.run["shape"]).items() if value is not None
        }
        # Steps after the last checkpoint of a killed run are logged again.
        purge = {"tensorboard": {"purge_step": step + 1}} if step else {}
        self.accelerator.init_trackers("music-tx", config=settings, init_kwargs=purge)
        self.first_step, self.started, self.paused, self.waited = step, time.perf_counter(), 0.0, 0.0
        on_main(self.accelerator, self.write, step)

    def train(self, step: int, done: Step):
        """Log a step: every `logging_steps` steps, the last one, and every skipped one."""
        self.waited += done.waited
        if done.skip_reason:
            self.skip(step, done)
        if not self.recipe.is_due(step, self.recipe.logging_steps):
            return
        trained = time.perf_counter() - self.started - self.paused
        steps_per_second = (step - self.first_step) / trained
        left = int((self.recipe.max_steps - step) / steps_per_second)
        rate = self.recipe.learning_rate * schedule(step - 1, self.recipe)
        speed = steps_per_second * self.tokens_per_step
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
        """Log a skipped step."""
        if not done.is_counted:
            self.accelerator.print(f"step {step}/{self.recipe.max_steps} | skipped: fp16 lowers its scale")
            return
        self.run["skipped_steps"][str(step)] = done.skip_reason
        count, limit = len(self.run["skipped_steps"]), self.recipe.max_skipped_steps
        counted = f"skipped ({count} of {limit})"
        self.accelerator.print(f"step {step}/{self.recipe.max_steps} | {counted}: {done.skip_reason}")

    def is_evaluated(self, step: int) -> bool:
        """Whether the validation split was scored after this step."""
        return str(step) in self.run["validation_nats_per_token"]

    def is_finite(self, step: int) -> bool:
        """Whether the score after this step was a finite number."""
        return self.run["validation_nats_per_token"][str(step)] is not None

    def evaluation(self, step: int, nats_per_token: float) -> bool:
        """Log the nats per token of the validation split; returns whether they are the fewest so far."""
        self.accelerator.print(f"step {step}/{self.recipe.max_steps} | validation {nats_per_token:.4f} nats per token")
        self.accelerator.log({"validation/nats_per_token": nats_per_token}, step=step)
        history = self.run["validation_nats_per_token"]
        # JSON has no NaN, and a minimum over one means nothing.
        history[str(step)] = round(nats_per_token, 4) if math.isfinite(nats_per_token) else None
        finite = [nats for nats in history.values() if nats is not None]
        return bool(finite) and history[str(step)] == min(finite)

    def picture(self, step: int, path: Path):
        """Log a sample's piano roll to a tracker that takes images."""
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
        """Exclude the time spent inside from the training speed."""
        start = time.perf_counter()
        yield
        self.paused += time.perf_counter() - start

    def write(self, step: int):
        """Write `run.json`."""
        trained = time.perf_counter() - self.started - self.paused
        self.run |= {
            "steps": step,
            "tokens": step * self.tokens_per_step,
            "data_wait_share": round(self.waited / trained, 4),
        }
        write_atomically(Path(self.recipe.output_dir, "run.json"), json.dumps(self.run, indent=2) + "\n")


def git_commit() -> str | None:
    """The commit of this code, marked `-dirty` if files have changed since; None outside of a checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return described.stdout.strip() or None


def on_main(accelerator, action, *arguments):
    """Run an action that writes files on the main process while the others wait; if it fails, all end together."""
    error = None
    if accelerator.is_main_process:
        try:
            action(*arguments)
        except (OSError, SafetensorError) as caught:
            error = caught
    if accelerator.reduce(torch.tensor(float(error is not None), device=accelerator.device)) > 0:
        raise error or SystemExit(2)
