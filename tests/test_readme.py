"""README.md and two pages of docs/ are true: commands and snippets run in order, each on the files of those before.

They run in a small copy of a checkout with tiny settings. A block runs unless `SHOWN_ONLY` gives a reason why not; a
new block is therefore run as it stands until someone decides otherwise.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_models import save_model

from tokenization import MusicTxTokenizer, PerformanceWithControls

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "docs/library.md", "docs/controls.md")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}

# Replacements that make the commands of the pages small.
TINY = {
    "recipes/maestro_small.yaml": "recipes/maestro_small.yaml --sequence_length 32 --max_steps 2"
    " --hidden_size 32 --num_hidden_layers 1 --mixed_precision no",
    "accelerate launch": "accelerate launch --cpu --num_processes 1",
    "hidden_size=512, num_hidden_layers=6": "hidden_size=32, num_hidden_layers=1",
    "max_new_tokens=1024": "max_new_tokens=64",
    "max_new_tokens=2048": "max_new_tokens=128",
    "--seconds 30": "--seconds 1",
    "--output_dir report": "--output_dir report --length 32 --num_samples 2 --seconds 1",
    "seconds=30": "seconds=1",
    "--density 6": "--seconds 1 --density 6",
    "--note_length planned": "--seconds 1 --note_length planned",
    "--infill 12 18 --num_samples 4": "--infill 2 3",
    "--num_samples 200": "--num_samples 3 --seconds 2",
    "evaluation.infilling": "evaluation.infilling --num_gaps 2",
    "recipes/maestro_controls.yaml": "recipes/maestro_controls.yaml --sequence_length 32 --max_steps 2"
    " --hidden_size 32 --num_hidden_layers 1 --mixed_precision no",
}

# Commands, by how they begin, and languages of blocks that are not run, with the reason.
SHOWN_ONLY = {
    "make demo": "continuous integration runs it as it stands, and it is slow to set up",
    "make web": "it needs Node, and serves until it is stopped; test-web runs what it builds",
    "pip install": "tests install nothing; the Makefile installs the same extras on every new machine",
    "python -m hub.publish": "it sends; test_publish.py runs it against a Hub on this machine",
    "python -m evaluation.drift": "it needs pieces of several minutes; test_drift.py runs it without",
    "bibtex": "a citation",
    "text": "the layout of a sequence",
}

# A process that runs each command in a fork of its own. It has imported the packages of other projects, which takes
# longer than most commands do, and none of this one.
FORKING = """
import json, os, runpy, sys
import accelerate, datasets, matplotlib.figure, miditok, symusic, torch, transformers.pipelines
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizer

sys.path.insert(0, os.getcwd())
for line in sys.stdin:
    arguments, output = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        if arguments[0] == "-c":
            exec(arguments[1], {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def blocks():
    """Each thing to run as (page:line, language, source): whole snippets of Python, single lines of shell."""
    for name, page in PAGES.items():
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            line = page[: block.start(2)].count("\n") + 1
            language, source = block.groups()
            if language != "bash":
                yield f"{name}:{line}", language, source
                continue
            for offset, command in enumerate(source.splitlines()):
                yield f"{name}:{line + offset}", language, command


def is_shown_only(language, source):
    return language in SHOWN_ONLY or (language == "bash" and source.startswith(tuple(SHOWN_ONLY)))


RUN = [block for block in blocks() if not is_shown_only(*block[1:])]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, make_score):
    """A checkout with the things that the README takes for granted, and an untrained model in place of the shipped."""
    checkout = tmp_path_factory.mktemp("checkout")
    for source in ROOT.glob("*.py"):
        shutil.copy(source, checkout)
    for room in ("modeling_music_tx", "tokenization", "corpus", "evaluation", "training", "hub", "recipes"):
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))

    # As in the repository, without the pipeline's code.
    tokenizer = MusicTxTokenizer.from_miditok(PerformanceWithControls())
    shipped = save_model(checkout / "checkpoints" / "maestro-small", tokenizer)
    settings = json.loads((shipped / "config.json").read_text())
    del settings["custom_pipelines"]
    (shipped / "config.json").write_text(json.dumps(settings))

    make_score(seconds=30).dump_midi(checkout / "performance.mid")
    (checkout / "my_midis").mkdir()
    for seed in range(20):
        make_score(seed).dump_midi(checkout / "my_midis" / f"{seed}.mid")
    write_maestro(checkout / "maestro-v2.0.0-midi.zip", sorted((checkout / "my_midis").iterdir())[:6])
    write_facts(checkout / "facts.json")
    return checkout


def write_maestro(path, performances):
    """Write an archive laid out like MAESTRO's."""
    splits = ["train", "validation", "test"] * (len(performances) // 3)
    lines = ["canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"]
    with zipfile.ZipFile(path, "w") as archive:
        for performance, split in zip(performances, splits, strict=True):
            name = f"2004/{performance.stem}.midi"
            archive.write(performance, f"maestro-v2.0.0/{name}")
            lines.append(f"Nobody,Piece {performance.stem},{split},2004,{name},{name}.wav,30.0")
        archive.writestr("maestro-v2.0.0/maestro-v2.0.0.csv", "\n".join(lines) + "\n")


def write_facts(path):
    """Write facts for the card."""
    words = ("repository", "license", "dataset", "dataset_id", "dataset_url", "dataset_license")
    words += ("training_data", "recipe", "hardware", "memorization")
    facts = dict.fromkeys(words, "someone/something") | {"dataset_url": "https://example.com"}
    facts |= {"tokens_seen": 1, "window": 32, "nll": {"validation": 6.0}}
    path.write_text(json.dumps(facts | {"statistics": {"notes": {"model": 1, "validation": 2}}}))


@pytest.fixture(scope="module")
def environment(checkout):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HOME": str(checkout / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def run_python(checkout, environment):
    """Run Python with some arguments in the checkout; returns the exit code and the output."""
    command = [sys.executable, "-P", "-c", FORKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=checkout, env=environment, text=True, **pipes) as process:

        def run_python(*arguments):
            print(json.dumps([arguments, str(checkout / "output.txt")]), file=process.stdin, flush=True)
            return int(process.stdout.readline()), (checkout / "output.txt").read_text()

        yield run_python
        process.stdin.close()


def words_of(command, folder):
    """Split a command as a shell does, wildcards included."""
    words = []
    for word in shlex.split(command):
        words += sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word]
    return words


@pytest.mark.parametrize(("line", "language", "source"), RUN, ids=[line for line, *_ in RUN])
def test_the_pages_run(checkout, environment, run_python, line, language, source):
    for written, tiny in TINY.items():
        source = source.replace(written, tiny)
    assert language in ("bash", "python"), f"{line}: no way to run {language or 'an unnamed language'}"
    if language == "python":
        code, output = run_python("-c", source)
    elif source.startswith("python "):
        code, output = run_python(*words_of(source, checkout)[1:])
    else:
        run = subprocess.run(["bash", "-c", source], cwd=checkout, env=environment, capture_output=True, text=True)
        code, output = run.returncode, run.stdout + run.stderr
    assert code == 0, f"{line}: {source}\n{output}"


def test_no_tiny_setting_and_no_excuse_outlives_what_it_was_made_for():
    run = "\n".join(source for _, _, source in RUN)
    assert [written for written in TINY if written not in run] == []
    shown = [(language, source) for _, language, source in blocks() if is_shown_only(language, source)]
    used = {
        excuse
        for excuse in SHOWN_ONLY
        for language, source in shown
        if excuse == language or source.startswith(excuse)
    }
    assert used == set(SHOWN_ONLY)


def test_what_the_pages_link_to_in_the_repository_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
        assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == [], page


def test_the_readme_is_at_most_160_lines_long():
    assert PAGES["README.md"].count("\n") <= 160
