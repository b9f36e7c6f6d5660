"""Publish a folder to the Hugging Face Hub: `python -m hub.publish folder user/name [--private] [--revision branch]`.

The folder holds model, tokenizer, code and card, as `train.py`, `hub.bundle` and `hub.card` write it; `hub.sample`
adds a sample where there is none. Only files that belong to a model are sent (`hub.contents`), after all of them have
been checked: the published model loads with `trust_remote_code=True` where this project is not installed.
A folder of `hub.web` becomes a static Space instead, a page that plays, after checks of its own.
huggingface_hub finds the access token of `hf auth login` or `HF_TOKEN`; this script does not read it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, logging
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from corpus.commands import run_command
from corpus.plain_text import printable
from hub.contents import CONSTANTS, PAGE, PICTURE, SAMPLE, is_page, page_files, published_files

# The classes that each file must map to the folder's own code.
AUTO_CLASSES = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForCausalLM"),
    "tokenizer_config.json": ("AutoTokenizer",),
}

# Status codes to retry, and the seconds before each retry where the Hub names none. huggingface_hub retries transfers
# by itself, but not the small requests around them.
RETRIED = (409, 429, 500, 502, 503, 504)
WAITS = (2, 8)

# What to do about a status code. The Hub's own text is left out: it may repeat what was sent.
ADVICE = {
    400: "the card or a file was refused; python -m hub.card writes a valid card",
    401: "the access token was not accepted; run `hf auth login`, or set HF_TOKEN",
    403: "the access token may not write there; use a token with write permission for this repository",
    404: "the repository or branch was not found; check the name and that the token may see it",
    409: "the repository is being changed elsewhere; try again",
    429: "too many requests; wait a few minutes and try again",
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that would not load once it is on the Hub.

    Args:
        folder: The folder to publish.

    Raises:
        ValueError: A file is missing or broken; one line that names it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that train.py wrote.")
    belong, others = published_files(folder)
    if not {"model.safetensors", "model.safetensors.index.json"} & set(belong):
        linked = " that is no symbolic link" if "model.safetensors" in others else ""
        raise ValueError(f"{folder} has no model.safetensors{linked}; save the model there with save_pretrained.")
    stored = {}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as weights:
                stored.update(dict.fromkeys(weights.keys(), path.name))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is broken ({error}); save the model again.") from error
    if not stored:
        raise ValueError(f"{folder} has weights without a tensor; save the model again.")
    if "model.safetensors.index.json" in belong:
        _check_shards(folder, stored)
    for name, classes in AUTO_CLASSES.items():
        if name not in belong:
            raise ValueError(f"{folder} has no {name}; save model and tokenizer there with save_pretrained.")
        _check_code(folder, name, classes)
    if not (folder / "generation_config.json").is_file():
        raise ValueError(f"{folder} has no generation_config.json; save the model there with save_pretrained.")
    _check_card(folder, "hub.card")


def check_page(folder: Path) -> None:
    """Refuse a page that would not play once it is on the Hub.

    Args:
        folder: A folder of `hub.web`.

    Raises:
        ValueError: A file is missing or broken; one line that names it.
    """
    belong, _ = page_files(folder)
    if absent := sorted({*PAGE} - {*belong}):
        raise ValueError(f"{folder} has no {', '.join(absent)}; write the page with python -m hub.web.")
    try:
        program = json.loads((folder / CONSTANTS).read_text(encoding="utf-8"))["program"]
        name, size = program["file"], program["bytes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/{CONSTANTS} is broken ({error}); write the page again.") from error
    if name not in belong or (folder / name).stat().st_size != size:
        raise ValueError(f"{folder} has no {name} of {size} bytes, which {CONSTANTS} names; write the page again.")
    if not any(name.startswith("samples/") for name in belong):
        raise ValueError(f"{folder} has no samples of the piano; write the page again.")
    _check_card(folder, "hub.web")


def _check_card(folder: Path, writer: str) -> None:
    """Refuse a folder whose card is missing, broken or without a license; `writer` is the command that writes it."""
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md; write the card with python -m {writer}.")
    try:
        card = RepoCard.load(folder / "README.md")
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{folder}/README.md does not begin with YAML; python -m {writer} writes it.") from error
    if not getattr(card.data, "license", None):
        source = "it is that of the model's card" if writer == "hub.web" else f"python -m {writer} writes it"
        raise ValueError(f"{folder}/README.md names no license; {source}.")


def _check_shards(folder: Path, stored: dict[str, str]) -> None:
    """Refuse an index that names tensors which are not in the files it names.

    Args:
        folder: The folder with the index.
        stored: The name of the file of each tensor.
    """
    path = folder / "model.safetensors.index.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        absent = sorted({file for name, file in named.items() if stored.get(name) != file})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is broken ({error}); save the model again.") from error
    if absent:
        raise ValueError(f"{path} names tensors of {', '.join(absent)} that are not there; save the model again.")


def _has_sample(folder: Path) -> bool:
    """Whether the folder has a sample that is not older than its model."""
    samples = (folder / SAMPLE, folder / PICTURE)
    saved = (folder / "config.json").stat().st_mtime
    return all(path.is_file() and path.stat().st_mtime >= saved for path in samples)


def _check_code(folder: Path, name: str, classes: tuple[str, ...]) -> None:
    """Refuse a configuration whose `auto_map` does not map each of `classes` to a file of the folder."""
    auto_map = json.loads((folder / name).read_text()).get("auto_map", {})
    for auto_class in classes:
        if auto_class not in auto_map:
            raise ValueError(f"{folder}/{name} has no {auto_class} in auto_map; write it with python -m hub.bundle.")
        # A tokenizer may map to two classes, the slow and the fast one; either may be null.
        targets = auto_map[auto_class] if isinstance(auto_map[auto_class], list) else [auto_map[auto_class]]
        for target in filter(None, targets):
            module = target.split("--")[-1].split(".")[0]
            if not (folder / f"{module}.py").is_file():
                raise ValueError(
                    f"{folder} has no {module}.py, which {name} names; write it with python -m hub.bundle."
                )


def publish(folder: Path, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a folder, and create the repository and the branch if they do not exist.

    Unchanged files are not sent again: after an upload that broke off, call this again.

    Args:
        folder: The folder to publish.
        repository: `user/name` on the Hub.
        private: Create a new repository as private; an existing one stays as it is.
        revision: The branch to upload to; the main branch if not given.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: The folder or the repository's name is not valid.
        ConnectionError: The Hub refused or could not be reached; one line that says what to do.
    """
    kind = "space" if is_page(folder) else "model"
    (check_page if kind == "space" else check_folder)(folder)
    if repository.count("/") != 1:
        raise ValueError(f"{repository} is not a repository of the Hub; write it as user/name.")
    if kind == "model" and not _has_sample(folder):
        from hub.sample import add_sample  # imported late: it loads torch

        add_sample(folder)
    api = HfApi()
    try:
        _again(lambda: _create(api, repository, kind, private))
        if revision is not None:
            _again(lambda: api.create_branch(repository, branch=revision, repo_type=kind, exist_ok=True))
        commit = _again(
            lambda: api.upload_folder(
                repo_id=repository,
                repo_type=kind,
                folder_path=folder,
                allow_patterns=_files(folder)[0],
                revision=revision,
                commit_message=f"Upload {folder.resolve().name}",
            )
        )
    except (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        raise ConnectionError(f"{repository} was not published: {_advice(error)}.") from error
    return commit.commit_url


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """The files that are published, and the others."""
    return page_files(folder) if is_page(folder) else published_files(folder)


def _create(api: HfApi, repository: str, kind: str, private: bool) -> None:
    """Create a repository if it does not exist."""
    sdk = {"space_sdk": "static"} if kind == "space" else {}
    try:
        api.create_repo(repository, repo_type=kind, private=private or None, **sdk)
    except HfHubHTTPError:
        # The Hub refuses one that exists with 409, and with 401 or 403 where the token may write but not create. Not
        # left to `exist_ok`, which takes every 409 for the first and expects its body.
        if not api.repo_exists(repository, repo_type=kind):
            raise


def _again(request: Callable):
    """Make a request, and retry it while the Hub is busy."""
    for wait in WAITS:
        try:
            return request()
        except HfHubHTTPError as error:
            if error.response.status_code not in RETRIED:
                raise
            said = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(said), 60) if said.isdigit() else wait)
    return request()


def _advice(error: Exception) -> str:
    """Describe an error of the Hub and what to do, in one clause."""
    # Uploads of large files run in threads, which wrap their errors in a RuntimeError.
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
    if isinstance(cause, LocalTokenNotFoundError):
        return "no access token was found; run `hf auth login`, or set HF_TOKEN"
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return f"{ADVICE.get(status, 'the Hub could not do it; try again later')} (the Hub answered {status})"
    return f"the Hub could not be reached ({type(cause).__name__}); check the network and run the same command again"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user or a refusal of the Hub."""
    parser = argparse.ArgumentParser(prog="python -m hub.publish", description="Publish a folder to the Hub.")
    parser.add_argument("folder", type=Path, help="folder with model, tokenizer, code and card; or a page of hub.web")
    parser.add_argument("repository", help="user/name on the Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: the main branch)")
    args = parser.parse_args(argv)
    # The library's messages about retries repeat URLs, and those of an upload grant access to the storage.
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()

    def send():
        print(publish(args.folder, args.repository, args.private, args.revision))
        if left := _files(args.folder)[1]:
            print(printable(f"not published: {', '.join(left)}"), file=sys.stderr)

    return run_command("hub.publish", send, "stopped; the same command sends what is missing")


if __name__ == "__main__":
    sys.exit(main())
