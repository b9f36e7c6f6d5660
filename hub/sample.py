"""Let a model be heard and seen before it is downloaded: `python -m hub.sample folder [--seconds 30]`.

The folder gets `sample.mid`, the first thing that the model plays from nothing and not the best of many, its piano
roll `sample.png`, and the code of `pipeline("midi-generation")`, by which a visitor makes the next one.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import modeling_music_tx  # noqa: F401 the Auto classes know it from here on
from evaluation.rendering import piano_roll
from hub.publish import PICTURE, SAMPLE
from tokenization import MidiGenerationPipeline


def add_sample(folder: Path, seconds: float = 30.0) -> None:
    """Let the folder's model play, and write down what it played.

    Args:
        folder: Where model and tokenizer are saved.
        seconds: How much music is made; a tokenizer that tells no seconds by its tokens gets as many tokens as its
            model's longest distance instead.

    Raises:
        ValueError: If the folder holds no model and tokenizer of ours.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    set_seed(0)
    if _tells_seconds(tokenizer):
        midi = MidiGenerationPipeline(model=model, tokenizer=tokenizer)
        score = midi(None, seconds=seconds, do_sample=True, top_p=0.98)
        if not getattr(model.config, "custom_pipelines", None):
            midi.save_pretrained(folder)
    else:
        start = torch.tensor([[tokenizer.bos_token_id]])
        length = max(model.config.max_relative_distance, 512)
        score = tokenizer.to_score(model.generate(start, do_sample=True, top_p=0.98, max_length=length)[0].tolist())
    score.dump_midi(folder / SAMPLE)
    piano_roll(score, folder / PICTURE)


def _tells_seconds(tokenizer) -> bool:
    """Whether the tokens say how long the music is, which the pipeline goes by."""
    try:
        return len(tokenizer.token_seconds) > 0
    except ValueError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and write the sample, or print one line on what is wrong.

    Args:
        arguments: The command line without the program's name; `sys.argv` if not given.

    Returns:
        The exit code: 0 if written, 2 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m hub.sample", description="Add a sample to a model's folder.")
    parser.add_argument("folder", type=Path, help="folder with model and tokenizer")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of music (default: 30)")
    options = parser.parse_args(arguments)
    try:
        add_sample(options.folder, options.seconds)
    except (ValueError, OSError) as error:
        print(f"hub.sample: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
