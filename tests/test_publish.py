"""Publishing: what is refused before it is sent, what arrives, and what is said when the Hub says no."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hub.publish import check_folder

ROOT = Path(__file__).parents[1]
TOKEN = "hf_atokenthatmustneverbeseen"


@pytest.fixture
def folder(tmp_path):
    """A folder of the shape that save_pretrained leaves, with a card."""
    folder = tmp_path / "nocturne"
    folder.mkdir()
    auto_map = {name: f"modeling_music_tx.{name}" for name in ("AutoModel", "AutoModelForCausalLM")}
    auto_map["AutoConfig"] = "configuration_music_tx.MusicTxConfig"
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_music_tx.MusicTxTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for module in ("configuration_music_tx", "modeling_music_tx", "tokenization_music_tx"):
        (folder / f"{module}.py").write_text('"""Code."""\n')
    save_file({"embedding": np.zeros((391, 8), np.float32)}, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n\n# Nocturne\n")
    return folder


class LoopbackHub(ThreadingHTTPServer):
    """As much of the Hub as an upload touches, on this machine: `branches[branch][path]` is what it holds."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), LoopbackHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.branches = {"main": {}}
        self.large_files = {}
        self.created = None  # the body of the request that made the repository
        self.answer = 200  # what every request is answered with


class LoopbackHandler(BaseHTTPRequestHandler):
    """The routes: create, branch, preupload, LFS batch and PUT, commit."""

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        if hub.answer != 200 or self.headers["Authorization"] != f"Bearer {TOKEN}":
            # A server may well repeat what it was sent.
            return self.reply(
                {"error": f"no: {self.headers['Authorization']}"}, hub.answer if hub.answer != 200 else 401
            )
        if path == "/api/repos/create":
            if hub.created is not None:
                return self.reply({"error": "exists", "url": f"{hub.url}/someone/nocturne"}, 409)
            hub.created = json.loads(body)
            return self.reply({"url": f"{hub.url}/someone/nocturne"})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if "/branch/" in path:
            hub.branches.setdefault(path.split("/branch/")[1], dict(hub.branches["main"]))
            return self.reply({})
        if "/preupload/" in path:
            held = hub.branches[path.split("/preupload/")[1]]
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": object_id(held[file["path"]]) if file["path"] in held else None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                if entry["oid"] not in hub.large_files:
                    entry["actions"] = {"upload": {"href": f"{hub.url}/large/{entry['oid']}"}}
            return self.reply({"transfer": "basic", "objects": objects})
        held = hub.branches[path.split("/commit/")[1]]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                held[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                held[line["value"]["path"]] = hub.large_files[line["value"]["oid"]]
        return self.reply({"commitUrl": f"{hub.url}/someone/nocturne/commit/1", "commitOid": "1"})

    def do_PUT(self):
        self.server.large_files[self.path.split("/")[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def reply(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def object_id(content: bytes) -> str:
    """Git's name for a blob, by which the client sees that a file is there already."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub():
    server = LoopbackHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run_publish(url, home, *arguments, **environment):
    """Run the command as a user does; huggingface_hub reads its environment once, on import."""
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    command = [sys.executable, "-m", "hub.publish", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def held_by(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_byte_of_the_folder_arrives(hub, folder, tmp_path):
    run = run_publish(hub.url, tmp_path, folder, "someone/nocturne", "--private")
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{hub.url}/someone/nocturne/commit/1\n"
    assert hub.branches == {"main": held_by(folder)}
    assert hub.created["name"] == "nocturne"
    assert "private" in hub.created.values()
    assert TOKEN not in run.stdout + run.stderr


def test_checkpoints_and_logs_stay_at_home(hub, folder, tmp_path):
    arriving = held_by(folder)
    for name in ("checkpoint-100/optimizer.bin", "checkpoint-100/model.safetensors", "logs/events.out"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"large")
    run = run_publish(hub.url, tmp_path, folder, "someone/nocturne")
    assert run.returncode == 0, run.stderr
    assert hub.branches == {"main": arriving}


def test_a_branch_is_made_and_the_main_one_left_alone(hub, folder, tmp_path):
    hub.created = {}
    run = run_publish(hub.url, tmp_path, folder, "someone/nocturne", "--revision", "nightly")
    assert run.returncode == 0, run.stderr
    assert hub.branches == {"main": {}, "nightly": held_by(folder)}


@pytest.mark.parametrize(("status", "word"), [(401, "hf auth login"), (403, "write permission"), (404, "not found")])
def test_a_refusal_ends_in_one_line_that_says_what_to_do_and_hides_the_token(hub, folder, tmp_path, status, word):
    hub.answer = status
    run = run_publish(hub.url, tmp_path, folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert word in run.stderr
    assert str(status) in run.stderr
    assert TOKEN not in run.stdout + run.stderr


def test_offline_ends_in_one_line(folder, tmp_path):
    run = run_publish("http://127.0.0.1:9", tmp_path, folder, "someone/nocturne", HF_HUB_OFFLINE="1")
    assert run.returncode == 2
    assert run.stderr == "hub.publish: someone/nocturne was not published: HF_HUB_OFFLINE is set; unset it.\n"


def test_a_hub_that_does_not_answer_ends_in_one_line(folder, tmp_path):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        run = run_publish(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path, folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "could not be reached" in run.stderr


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "config.json", "tokenizer_config.json", "README.md", "modeling_music_tx.py"]
)
def test_an_incomplete_folder_is_refused_by_the_name_of_what_is_missing(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        check_folder(folder)


@pytest.mark.parametrize("stranger", ["pytorch_model.bin", "training_args.pkl", ".env"])
def test_pickles_and_strangers_are_refused_by_name(folder, stranger):
    (folder / stranger).write_bytes(b"")
    with pytest.raises(ValueError, match=stranger):
        check_folder(folder)


def test_a_model_saved_without_its_code_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "music_tx"}')
    with pytest.raises(ValueError, match="AutoConfig"):
        check_folder(folder)


def test_a_sharded_model_is_as_good_as_one_file(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    check_folder(folder)


def test_a_card_without_a_license_is_refused(folder):
    (folder / "README.md").write_text("---\ntags: [music]\n---\n# Nocturne\n")
    with pytest.raises(ValueError, match="license"):
        check_folder(folder)


def test_a_name_that_is_no_repository_is_refused_before_anything_is_sent(folder, tmp_path):
    run = run_publish("http://127.0.0.1:9", tmp_path, folder, "nocturne")
    assert run.returncode == 2
    assert run.stderr == "hub.publish: nocturne is not a repository of the Hub; write it as user/name.\n"
