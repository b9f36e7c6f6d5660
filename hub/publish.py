"""Publish a folder to the Hugging Face Hub: `python -m hub.publish folder user/name [--private] [--revision branch]`.

The folder holds model, tokenizer, code and card, as `train.py` and `hub.card` leave it; where it has no sample yet,
`hub.sample` adds one. What lies in folders beside them, checkpoints and logs, stays at home. All is checked before
anything is sent, so that what arrives loads with `trust_remote_code=True` on a machine that has never seen this
project. The access token is the one of `hf auth login` or `HF_TOKEN`; huggingface_hub finds it, and it is never read
here.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, logging
from yaml import YAMLError

# Everything a reader needs and nothing that runs on being opened: weights are safetensors, never pickles.
ALLOWED_SUFFIXES = (".json", ".md", ".mid", ".png", ".py", ".safetensors", ".wav")

# The classes that must be found in the folder's own code, by the file that names them.
AUTO_CLASSES = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForCausalLM"),
    "tokenizer_config.json": ("AutoTokenizer",),
}

# What there is to hear and to see.
SAMPLE, PICTURE = "sample.mid", "sample.png"

# Answers that may be another one in a moment, and for how many seconds to wait before each new try where the Hub does
# not say. huggingface_hub itself tries the transfers several times, but not the small requests around them.
PASSING = (409, 429, 500, 502, 503, 504)
WAITS = (2, 8)

# What to do about an answer of the Hub. Its own words are left out: they may repeat what was sent.
ADVICE = {
    400: "the card or a file was refused; python -m hub.card writes a valid card",
    401: "the access token was not accepted; run `hf auth login`, or set HF_TOKEN",
    403: "the access token may not write there; use a token with write permission for this repository",
    404: "the repository or branch was not found; check the name and that the token may see it",
    409: "the repository is being changed elsewhere; try again",
    429: "too many requests; wait a few minutes and try again",
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that would not load once it is on the Hub, or that holds what nobody should download.

    Args:
        folder: The folder to publish.

    Raises:
        ValueError: If a file is missing or may not be published; one line that names it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that train.py wrote.")
    strangers = sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.suffix not in ALLOWED_SUFFIXES
    )
    if strangers:
        raise ValueError(f"{folder} holds {', '.join(strangers)}; only {' '.join(ALLOWED_SUFFIXES)} are published.")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ValueError(f"{folder} has no model.safetensors; save the model there with save_pretrained.")
    for name, classes in AUTO_CLASSES.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; save model and tokenizer there with save_pretrained.")
        _check_code(folder, name, classes)
    if not (folder / "generation_config.json").is_file():
        raise ValueError(f"{folder} has no generation_config.json; save the model there with save_pretrained.")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md; write the card with python -m hub.card.")
    try:
        card = ModelCard.load(folder / "README.md")
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{folder}/README.md does not begin with YAML; python -m hub.card writes it.") from error
    if not card.data.license:
        raise ValueError(f"{folder}/README.md names no license; python -m hub.card writes it.")


def _has_sample(folder: Path) -> bool:
    """Whether the folder's sample is there and not older than its model."""
    samples = (folder / SAMPLE, folder / PICTURE)
    saved = (folder / "config.json").stat().st_mtime
    return all(path.is_file() and path.stat().st_mtime >= saved for path in samples)


def _check_code(folder: Path, name: str, classes: tuple[str, ...]) -> None:
    """Refuse a configuration whose `auto_map` does not lead each of `classes` to a file of the folder."""
    auto_map = json.loads((folder / name).read_text()).get("auto_map", {})
    for auto_class in classes:
        if auto_class not in auto_map:
            raise ValueError(f"{folder}/{name} has no {auto_class} in auto_map; save it with save_pretrained.")
        # A tokenizer may map to two classes, the slow and the fast one; either may be null.
        targets = auto_map[auto_class] if isinstance(auto_map[auto_class], list) else [auto_map[auto_class]]
        for target in filter(None, targets):
            module = target.split("--")[-1].split(".")[0]
            if not (folder / f"{module}.py").is_file():
                raise ValueError(f"{folder} has no {module}.py, which {name} names; save it with save_pretrained.")


def publish(folder: Path, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a folder, making the repository and the branch where they are missing.

    What is there already and unchanged is not sent again, so a cut upload is taken up by calling this again.

    Args:
        folder: The folder to publish.
        repository: `user/name` on the Hub.
        private: Whether a repository that is made now is private, whatever the owner's default; one that exists
            stays as it is.
        revision: The branch to upload to; the main branch if not given.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the folder or the repository's name will not do.
        ConnectionError: If the Hub refused or could not be reached; one line with what to do.
    """
    check_folder(folder)
    if repository.count("/") != 1:
        raise ValueError(f"{repository} is not a repository of the Hub; write it as user/name.")
    if not _has_sample(folder):
        from hub.sample import add_sample  # here, for it loads torch

        add_sample(folder)
    api = HfApi()
    try:
        _again(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
        if revision is not None:
            _again(lambda: api.create_branch(repository, branch=revision, exist_ok=True))
        commit = _again(
            lambda: api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                ignore_patterns="*/*",
                revision=revision,
                commit_message=f"Upload {folder.resolve().name}",
            )
        )
    except (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        raise ConnectionError(f"{repository} was not published: {_advice(error)}.") from error
    return commit.commit_url


def _again(request: Callable):
    """Make a request, and make it again where the Hub was only busy."""
    for wait in WAITS:
        try:
            return request()
        except HfHubHTTPError as error:
            if error.response.status_code not in PASSING:
                raise
            said = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(said), 60) if said.isdigit() else wait)
    return request()


def _advice(error: Exception) -> str:
    """Say in a clause what went wrong with the Hub and what to do, in no words but our own."""
    # Uploads of large files run in threads, which wrap what happened to them in a RuntimeError.
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
    if isinstance(cause, LocalTokenNotFoundError):
        return "no access token was found; run `hf auth login`, or set HF_TOKEN"
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return f"{ADVICE.get(status, 'the Hub could not do it; try again later')} (the Hub answered {status})"
    return f"the Hub could not be reached ({type(cause).__name__}); check the network and run the same command again"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, publish, and print the address or one line on what is wrong.

    Args:
        arguments: The command line without the program's name; `sys.argv` if not given.

    Returns:
        The exit code: 0 if published, 2 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m hub.publish", description="Publish a folder to the Hub.")
    parser.add_argument("folder", type=Path, help="folder with model, tokenizer, code and card")
    parser.add_argument("repository", help="user/name on the Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: the main branch)")
    options = parser.parse_args(arguments)
    # What the library would say of each new try repeats addresses, and those of an upload open the storage.
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        print(publish(options.folder, options.repository, options.private, options.revision))
    except (ValueError, OSError) as error:
        print(f"hub.publish: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
