"""Checkpoints: written whole, verified when they are loaded, and rotated.

A checkpoint is a folder `checkpoint-STEP` with the weights and the optimizers' state as safetensors, the run as JSON,
and a manifest with the SHA-256 of both. Nothing is pickled.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from corpus.atomic_files import atomic_folder, flush_to_disk, sha256
from modeling_music_tx import MusicTxConfig
from training.log import TrainingLog, on_main
from training.recipe import CONFIG_FIELDS, Recipe

# The files of a checkpoint. The manifest is written last.
STATE, RUN, MANIFEST = "state.safetensors", "run.json", "manifest.json"


def numbered(output_dir: str, kind: str) -> list[Path]:
    """Return the folders `kind-STEP` of a run, ordered by step."""
    found = [path for path in Path(output_dir).glob(f"{kind}-*") if path.name.removeprefix(f"{kind}-").isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Return the step in the name of a folder."""
    return int(folder.name.rpartition("-")[2])


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that may be sharded; all processes must call this in the same order."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous()


def training_state(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Return everything that training changes, by kind and parameter: `weight/...`, `exp_avg/...`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = {f"weight/{name}": gather(parameter) for parameter, name in names.items()}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            state |= {f"{kind}/{names[parameter]}": gather(value) for kind, value in values.items()}
    return state


@torch.no_grad()
def load_training_state(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], state: dict):
    """Load what `training_state` returned into a model and optimizers of the same structure.

    Raises:
        KeyError: The state lacks a weight, or has one that the model has not.
    """
    parameters = dict(model.named_parameters())
    if lacking := sorted({f"weight/{name}" for name in parameters} - state.keys()):
        raise KeyError(lacking[0])
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


def save_checkpoint(accelerator, model, optimizers, log: TrainingLog, recipe: Recipe, step: int):
    """Write everything that an exact resume needs."""
    state = training_state(accelerator.unwrap_model(model), optimizers)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None

    def write():
        with atomic_folder(Path(recipe.output_dir, f"checkpoint-{step}")) as folder:
            save_file(state, folder / STATE)
            (folder / RUN).write_text(json.dumps({"step": step, "scaler": scaler, "run": log.run}))
            shutil.copymode(folder / RUN, folder / STATE)  # safetensors writes files that no other user can read
            (folder / MANIFEST).write_text(json.dumps({name: sha256(folder / name) for name in (STATE, RUN)}))
            for path in (folder / STATE, folder / RUN, folder / MANIFEST, folder):
                flush_to_disk(path)

    on_main(accelerator, write)


def remove_oldest(log: TrainingLog, recipe: Recipe, step: int):
    """Remove the oldest checkpoints beyond the limit, but not the last healthy one.

    Call this once the checkpoint of this step has proved to give a finite loss.
    """
    older = [path for path in numbered(recipe.output_dir, "checkpoint") if step_of(path) <= step]
    healthy = last_healthy(recipe.output_dir, log.run["skipped_steps"])
    for path in older[: -recipe.save_total_limit]:
        if path != healthy:
            shutil.rmtree(path)


def last_healthy(output_dir: str, skipped_steps: dict[str, str]) -> Path | None:
    """Return the newest checkpoint from before the first skipped step, or None.

    The checkpoint of the step just before does not count: its weights gave the loss that was not finite.
    """
    end = min(map(int, skipped_steps), default=math.inf) - 1
    healthy = [path for path in numbered(output_dir, "checkpoint") if step_of(path) < end]
    return healthy[-1] if healthy else None


def check_skipped_steps(log: TrainingLog, recipe: Recipe):
    """Raise FloatingPointError if too many steps were skipped; the message says where to go on from."""
    skipped = log.run["skipped_steps"]
    if len(skipped) > recipe.max_skipped_steps:
        step, reason = list(skipped.items())[-1]
        raise FloatingPointError(
            f"{len(skipped)} steps had no finite loss and gradient, the last at step {step}: {reason}; lower the "
            f"learning rate or look at these crops, and {way_back(log, recipe)}"
        )


def way_back(log: TrainingLog, recipe: Recipe) -> str:
    """Say how to go on from before a divergence."""
    healthy = last_healthy(recipe.output_dir, log.run["skipped_steps"])
    if healthy is None:
        return "start over with --overwrite true: no checkpoint is from before the first skipped step."
    return f"continue with --resume_from_checkpoint {healthy}, which is from before the first skipped step."


def is_complete(folder: Path) -> bool:
    """Whether the files of a checkpoint have the checksums of its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all(sha256(folder / name) == manifest[name] for name in (STATE, RUN))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resume(accelerator, model, optimizers, log: TrainingLog, recipe: Recipe) -> int:
    """Load the checkpoint that the recipe names, if any; `latest` starts from scratch where there is none yet.

    Returns:
        The number of steps done.

    Raises:
        ValueError: There is no complete checkpoint, or it belongs to another training.
    """
    if recipe.resume_from_checkpoint is None:
        on_main(accelerator, start_over, recipe)
        return 0
    is_latest = recipe.resume_from_checkpoint == "latest"
    found = numbered(recipe.output_dir, "checkpoint") if is_latest else [Path(recipe.resume_from_checkpoint)]
    broken = []
    while found and not is_complete(found[-1]):
        broken.append(found.pop())
        accelerator.print(f"{broken[-1]} is not a complete checkpoint")
    if broken and not found:
        raise ValueError(f'{broken[-1]} is not a complete checkpoint; give another one to resume from, or "latest".')
    step = 0
    if found:
        try:
            step = load_checkpoint(found[-1], accelerator, model, optimizers, log)
        # Whatever fields, tensors or shapes are not those that this version writes.
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{found[-1]} does not have the fields of this version's checkpoints ({type(error).__name__}: "
                f"{error}); continue it with the version that wrote it, or start over with --overwrite true."
            ) from error
        if step > recipe.max_steps:
            raise ValueError(
                f"{found[-1]} has done {step} steps already; max_steps ({recipe.max_steps}) must be more."
            )
        accelerator.print(f"resuming from {found[-1]}")
    if len(set(accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist())) > 1:
        raise ValueError(f"output_dir ({recipe.output_dir}) must be a folder that all machines share.")
    return step


def load_checkpoint(folder: Path, accelerator, model, optimizers, log: TrainingLog) -> int:
    """Load a checkpoint's weights, optimizers and record; returns the number of steps done."""
    checkpoint = json.loads((folder / RUN).read_text())
    check_same_run(folder, checkpoint["run"], log.run)
    load_training_state(accelerator.unwrap_model(model), optimizers, load_file(folder / STATE))
    if accelerator.scaler is not None and checkpoint["scaler"]:
        accelerator.scaler.load_state_dict(checkpoint["scaler"])
    for history in ("validation_nats_per_token", "skipped_steps"):
        log.run[history] = checkpoint["run"].get(history, {})
    return checkpoint["step"]


def start_over(recipe: Recipe):
    """Remove the checkpoints of an earlier run in the same folder.

    Raises:
        OSError: There are some, and the recipe does not say `overwrite`.
    """
    found = [*numbered(recipe.output_dir, "checkpoint"), *numbered(recipe.output_dir, "best")]
    if found and not recipe.overwrite:
        raise FileExistsError(
            f"{recipe.output_dir} holds {found[-1].name} of an earlier run; continue it with --resume_from_checkpoint "
            "latest, start over with --overwrite true, or give another --output_dir."
        )
    for folder in found:
        shutil.rmtree(folder)


def check_same_run(folder: Path, then: dict, now: dict):
    """Raise ValueError if this run cannot continue the run of a checkpoint; other fields of a recipe may change.

    A field that the checkpoint's run did not have yet counts as its default.
    """
    fixed = ("optimizer", "lora_rank")
    defaults = vars(Recipe("", "")) | {name: getattr(MusicTxConfig(), name) for name in CONFIG_FIELDS}
    was = defaults | then["recipe"] | then["shape"] | {"corpus": then["corpus_fingerprint"]}
    now = now["shape"] | {name: now["recipe"][name] for name in fixed} | {"corpus": now["corpus_fingerprint"]}
    for name in now:
        if was.get(name) != now[name]:
            raise ValueError(f"{folder} is of a run with {name} {was.get(name)}, and this one has {now[name]}.")
