"""What train.py calls: the recipe, optimizers, the log and checkpoints."""
