"""A model published over HTTP loads and runs where none of these packages is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clean_process import run_clean
from loopback_hub import TOKEN, LoopbackHub
from symusic import Score
from test_card import FACTS
from test_card import write as write_card
from test_publish import run_publish
from tiny_models import save_model

from modeling_music_tx import MusicTxForCausalLM
from tokenization import MusicTxTokenizer

ROOT = Path(__file__).parents[1]

PUSH = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
import modeling_music_tx, tokenization

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for _ in range(2):
    model.push_to_hub("someone/pushed", private=True)
    tokenizer.push_to_hub("someone/pushed")
"""

TAG = """
from huggingface_hub import HfApi

HfApi().create_tag("someone/nocturne", tag="v1")
"""

LOAD = """
import json
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

pins = {"revision": revision, "code_revision": revision, "trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(repository, **pins)
model = AutoModelForCausalLM.from_pretrained(repository, **pins)
ids = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=24, do_sample=False)
tokenizer.to_score(ids[0].tolist())
logits = model(ids).logits.double().sum().item()
hidden = AutoModel.from_pretrained(repository, **pins)(ids).last_hidden_state
labels = AutoModelForSequenceClassification.from_pretrained(repository, num_labels=3, **pins)(ids).logits
shapes = [list(hidden.shape), list(labels.shape)]
print(json.dumps({"ids": ids[0].tolist(), "logits": logits, "shapes": shapes}))
"""

# In one process, because importing torch and transformers takes longer than all of it.
LOAD_EACH = f"""
for revision in revisions:
    exec({LOAD!r})
"""

PIPELINE = """
import json
from transformers import pipeline

midi = pipeline("midi-generation", model=repository, trust_remote_code=True)
midi(None, seconds=1, do_sample=True).dump_midi("piece.mid")
print(json.dumps("played"))
"""


def run(code, folder, environment, **names):
    """Run code where no package of this project can be imported; return what it printed, parsed line by line."""
    process = run_clean(code, folder, environment, **names)
    assert TOKEN not in process.stdout + process.stderr
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small untrained model with its tokenizer and card, as a training and `hub.card` leave them."""
    fields = {"num_hidden_layers": 2, "max_relative_distance": 16, "initializer_range": 0.2}
    folder = save_model(tmp_path_factory.mktemp("runs") / "nocturne", MusicTxTokenizer(), **fields)
    assert write_card(folder, FACTS) == 0
    return folder


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, folder, tmp_path_factory):
    """The repository after `python -m hub.publish` and a tag; and the environment of one who has the token."""
    environment = hub.environment(tmp_path_factory.mktemp("home"))
    process = run_publish(environment, folder, "someone/nocturne")
    assert process.returncode == 0, process.stderr
    run(TAG, folder, environment)
    return hub.repositories["someone/nocturne"]


@pytest.fixture(scope="module")
def visitor(hub, tmp_path_factory):
    """A folder far from the checkout and the environment of one who has neither our packages nor a token."""
    folder = tmp_path_factory.mktemp("visitor")
    environment = hub.environment(folder / "home")
    del environment["HF_TOKEN"]
    return folder, environment


@pytest.fixture(scope="module")
def loaded(published, visitor):
    """What a process without the packages prints after loading the repository, and after running its pipeline."""
    return run(LOAD + PIPELINE, *visitor, repository="someone/nocturne", revision="main")


def expected(folder):
    """The same from the folder itself."""
    model = MusicTxForCausalLM.from_pretrained(folder)
    ids = model.generate(torch.tensor([[1]]), max_new_tokens=24, do_sample=False)
    return {
        "ids": ids[0].tolist(),
        "logits": pytest.approx(model(ids).logits.double().sum().item(), rel=1e-4),
        "shapes": [[1, ids.shape[1], 32], [1, 3]],
    }


def test_one_repository_holds_all_that_belongs_to_the_model(published, folder):
    files = published.files()
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = {"config.json", "generation_config.json", "tokenizer_config.json", "miditok.json"}
    code = {"configuration_music_tx.py", "modeling_music_tx.py", "tokenization_music_tx.py", "pipeline_music_tx.py"}
    assert {"README.md", "model.safetensors", "sample.mid", "sample.png"} | settings | code <= files.keys()
    assert Score.from_midi(files["sample.mid"]).note_num() > 0
    assert files["sample.png"].startswith(b"\x89PNG")


def test_it_loads_by_its_name_and_gives_the_same(loaded, folder):
    assert loaded[0] == expected(folder)


def test_a_tag_and_the_id_of_a_commit_pin_weights_and_code(published, folder, visitor, hub):
    first = published.sha("v1")
    broken = published.files() | {"modeling_music_tx.py": b"raise SystemExit('changed code')", "config.json": b"{}"}
    later = published.commit("main", broken)
    results = run(LOAD_EACH, *visitor, repository="someone/nocturne", revisions=["v1", first])
    assert results == [expected(folder)] * 2
    assert later != first
    published.names["main"] = first


def test_what_was_loaded_once_loads_without_a_network(loaded, visitor, hub):
    before = len(hub.requests)
    environment = visitor[1] | {"HF_HUB_OFFLINE": "1"}
    assert run(LOAD, visitor[0], environment, repository="someone/nocturne", revision="main") == loaded[:1]
    assert len(hub.requests) == before


def test_the_pipeline_plays_from_the_repository_alone(loaded, visitor):
    assert loaded[1] == "played"
    assert Score(visitor[0] / "piece.mid").note_num() > 0


def test_model_and_tokenizer_pushed_by_themselves_make_a_repository_too(hub, folder, visitor, tmp_path):
    environment = hub.environment(tmp_path)
    command = [sys.executable, "-c", PUSH, folder]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert TOKEN not in process.stdout + process.stderr
    assert hub.repositories["someone/pushed"].private
    # Pushed twice: the second time nothing was new.
    assert hub.count("/api/models/someone/pushed/commit/") == 2
    names = {"repository": "someone/pushed", "revision": "main"}
    assert run(LOAD, tmp_path, environment, **names) == [expected(folder)]
    refused = run_clean(LOAD, *visitor, **names)
    assert refused.returncode != 0
    assert "private or gated repo" in refused.stderr


AUDIT = """
import importlib, os, sys
from pathlib import Path
import miditok, miditok.utils, numpy, symusic, torch, torch.nn, transformers
from huggingface_hub import dataclasses
from transformers import AutoConfig, AutoTokenizer, GenerationMixin, Pipeline, PreTrainedModel, PreTrainedTokenizer

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path.cwd().parent))
# What the import of any module and the making of any class raise.
HARMLESS = {"import", "compile", "exec", "marshal.loads", "os.listdir", "os.scandir", "sys._getframe",
            "sys._getframemodulename", "object.__getattr__", "object.__setattr__", "builtins.id"}
seen, watching = set(), False
# Imported here, before it is watched for.
import json


def watch(event, arguments):
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.add("writes " + str(path))
    elif event not in HARMLESS:
        seen.add(event)


sys.addaudithook(watch)
for modules in groups:
    seen.clear()
    watching = True
    for module in modules:
        importlib.import_module(Path.cwd().name + "." + module)
    watching = False
    print(json.dumps(sorted(seen)))
"""

# Code that does more than define, by what the audit reports.
MISCHIEF = {
    "writes diary": "open('diary', 'w').close()",
    "os.remove": "import os; os.remove('diary')",
    "subprocess.Popen": "import subprocess; subprocess.run(['true'])",
    "socket.connect": "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
}


def test_the_published_code_only_defines_and_other_code_would_be_reported(published, tmp_path):
    code = tmp_path / "published"
    code.mkdir()
    for name, content in published.files().items():
        if name.endswith(".py"):
            (code / name).write_bytes(content)
    (code / "mischief.py").write_text("\n".join(MISCHIEF.values()))
    # The files that the settings name; they import the others.
    entries = ("configuration_music_tx", "modeling_music_tx", "tokenization_music_tx", "pipeline_music_tx")
    defining, other = run(AUDIT, code, {"PATH": os.environ["PATH"]}, groups=[entries, ("mischief",)])
    assert defining == []
    assert MISCHIEF.keys() <= set(other)
