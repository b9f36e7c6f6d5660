"""Write a model with its code into one folder: `python -m hub.bundle checkpoints/maestro-small --output_dir bundle`.

The folder loads with `trust_remote_code=True` where this project is not installed, and is what `hub.publish` sends.
The repository itself keeps weights and configurations alone: their code is in its packages.
"""

import shutil
import sys
from pathlib import Path

from corpus.commands import run_command
from corpus.plain_text import printable
from hub import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.bundle(__doc__).parse_args()

from safetensors.torch import load_file

from evaluation.loading import load_model, load_model_tokenizer
from hub.contents import published_files
from tokenization import MidiGenerationPipeline


def bundle(folder: Path, output_dir: Path) -> list[str]:
    """Write a copy of a model's folder that holds the code of model, tokenizer and pipeline.

    Args:
        folder: Where model and tokenizer are saved.
        output_dir: A folder that does not exist or is empty.

    Returns:
        The names of the files written.

    Raises:
        ValueError: `folder` holds no model and tokenizer of this project, or `output_dir` holds files.
    """
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty; give another --output_dir.")
    pipeline = MidiGenerationPipeline(model=load_model(str(folder)).cpu(), tokenizer=load_model_tokenizer(str(folder)))
    # The weights as they are on the disk, in their dtype.
    weights = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    pipeline.save_pretrained(output_dir, state_dict=weights)
    for name in published_files(folder)[0]:
        if name == "README.md" or name.startswith("sample."):
            shutil.copyfile(folder / name, output_dir / name)
    return published_files(output_dir)[0]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.bundle(__doc__)
    args = parser.parse_args(argv)

    def write():
        names = bundle(args.folder, args.output_dir)
        print(printable(f"{args.output_dir}: {', '.join(names)}"))

    return run_command("hub.bundle", write, f"stopped; {printable(args.output_dir)} is not complete")


if __name__ == "__main__":
    sys.exit(main())
