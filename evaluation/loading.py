"""Load a model for a command: from a folder or from the Hub, with the code of these packages.

The code that a folder or a repository brings along is run only if the caller trusts it.
"""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import modeling_music_tx  # noqa: F401 registers the model with the Auto classes
from tokenization import MusicTxTokenizer


def find_model(name: str) -> Path:
    """Return the folder of a model, which is downloaded if it is on the Hub.

    Args:
        name: A folder, or `user/name` on the Hub.

    Raises:
        ValueError: There is no such model.
    """
    folder = Path(name)
    if str(name).count("/") == 1 and not folder.parent.is_dir():
        # All files of one revision. Without a network this fails at once; loading file by file retries for a minute.
        try:
            folder = Path(snapshot_download(name))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} is no folder here and cannot be had from the Hub: {str(error).splitlines()[0]}"
            ) from None
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} holds no model; give a folder with a config.json in it, or user/name on the Hub.")
    return folder


def load_model(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model onto the accelerator, or the CPU where there is none.

    Args:
        name: A folder, or `user/name` on the Hub.
        trust_remote_code: Run the model's own code instead of this package's.

    Raises:
        ValueError: It cannot be loaded.
    """
    disable_progress_bar()
    folder = find_model(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code, use_safetensors=True)
    # What is wrong with a model's files is raised by json, safetensors, huggingface_hub or torch.
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded as a model: {' '.join(str(error).split())}") from error
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def load_model_tokenizer(name: str) -> MusicTxTokenizer:
    """Load the tokenizer that is saved beside a model.

    Args:
        name: A folder, or `user/name` on the Hub.

    Raises:
        ValueError: There is none, or one of another kind.
    """
    folder = find_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{name} has no tokenizer that loads: {' '.join(str(error).split())}") from error
    if not isinstance(tokenizer, MusicTxTokenizer):
        raise ValueError(f"{name} has a {type(tokenizer).__name__}; a model of music comes with a MusicTxTokenizer.")
    return tokenizer
