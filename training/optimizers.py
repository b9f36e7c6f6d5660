"""The optimizers of a training and their learning rate."""

import torch

from training.recipe import Recipe


def make_optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Create AdamW, and Muon for the matrices of the layers if the recipe says so.

    Biases and normalisation weights are not decayed. Each parameter group holds its peak learning rate as `peak`.

    Source: Jordan et al. 2024; updates scaled to AdamW's size, as in Liu et al. 2025 (arXiv 2502.16982).
    """
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in parameters if recipe.optimizer == "muon" and name.endswith("_proj.weight")]
    rest = [p for name, p in parameters if recipe.optimizer != "muon" or not name.endswith("_proj.weight")]
    peak = recipe.learning_rate
    if matrices and recipe.embedding_learning_rate is not None:
        peak = recipe.embedding_learning_rate
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay, "peak": peak},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "peak": peak},
    ]
    optimizers = [torch.optim.AdamW(groups, betas=(0.9, recipe.adam_beta2), fused=True)]
    if matrices:
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay, "peak": recipe.learning_rate}]
        optimizers.append(torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def schedule(step: int, recipe: Recipe) -> float:
    """Return the learning rate's share of its peak: linear warmup, a plateau, and a linear decay to zero.

    A run may be prolonged until the decay begins.
    """
    rise = (step + 1) / max(recipe.warmup_steps, 1)
    fall = (recipe.max_steps - step) / max(recipe.decay_fraction * recipe.max_steps, 1)
    return min(rise, fall, 1.0)
