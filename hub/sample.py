"""Add a sample to a model's folder: `python -m hub.sample folder [--seconds 30]`.

It writes `sample.mid`, the model's first sample from nothing and not the best of many, and
`sample.png`, its piano roll.
"""

import sys
from pathlib import Path

from corpus.commands import run_command
from corpus.plain_text import printable
from hub import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.sample(__doc__).parse_args()

from transformers import set_seed

from evaluation.loading import load_model, load_model_tokenizer
from evaluation.rendering import piano_roll
from hub.contents import PICTURE, SAMPLE
from tokenization import generate_music


def add_sample(folder: Path, seconds: float = 30.0) -> None:
    """Generate a sample and write it to the model's folder.

    Args:
        folder: Where model and tokenizer are saved.
        seconds: Length of the sample. Where tokens do not tell seconds, it is as many tokens long as the model's
            longest relative distance, at least 512.

    Raises:
        ValueError: The folder holds no model and tokenizer of this project.
    """
    model, tokenizer = load_model(str(folder)), load_model_tokenizer(str(folder))
    length = {"seconds": seconds}
    try:
        _ = tokenizer.token_seconds
    except ValueError:
        length = {"seconds": None, "max_new_tokens": max(model.config.max_relative_distance, 512) - 1}
    set_seed(0)
    (ids,) = generate_music(model, tokenizer, do_sample=True, min_p=0.02, top_p=1.0, **length)
    score = tokenizer.to_score(ids)
    score.dump_midi(folder / SAMPLE)
    piano_roll(score, folder / PICTURE)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.sample(__doc__)
    args = parser.parse_args(argv)

    def write():
        add_sample(args.folder, args.seconds)
        print(printable(f"{args.folder / SAMPLE} and {PICTURE}"))

    return run_command("hub.sample", write)


if __name__ == "__main__":
    sys.exit(main())
