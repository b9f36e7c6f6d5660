"""Publishing checks a folder before the upload, sends what belongs to a model, and reports refusals in one line."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import TOKEN, LoopbackHub, Repository
from safetensors.numpy import save_file

from hub.contents import PAGE
from hub.publish import check_folder, check_page

ROOT = Path(__file__).parents[1]


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
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n\n# Nocturne\n")
    (folder / "sample.mid").write_bytes(b"MThd")
    (folder / "sample.png").write_bytes(b"PNG")
    return folder


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def run_publish(environment, *arguments):
    """Run the command as a user does."""
    command = [sys.executable, "-m", "hub.publish", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def held_by(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_byte_of_the_folder_arrives(hub, folder, tmp_path):
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne", "--private")
    assert run.returncode == 0, run.stderr
    repository = hub.repositories["someone/nocturne"]
    assert run.stdout == f"{hub.url}/someone/nocturne/commit/{repository.sha('main')}\n"
    assert run.stderr == ""
    assert repository.files() == held_by(folder)
    assert repository.private


def test_what_lies_in_folders_beside_stays_at_home(hub, folder, tmp_path):
    arriving = held_by(folder)
    for name in ("checkpoint-100/optimizer.bin", "checkpoint-100/model.safetensors", "logs/events.out"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"large")
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert run.returncode == 0, run.stderr
    assert hub.repositories["someone/nocturne"].files() == arriving


def test_a_branch_is_made_and_the_main_one_left_alone(hub, folder, tmp_path):
    hub.repositories["someone/nocturne"] = Repository(private=False)
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne", "--revision", "nightly")
    assert run.returncode == 0, run.stderr
    assert hub.repositories["someone/nocturne"].files() == {}
    assert hub.repositories["someone/nocturne"].files("nightly") == held_by(folder)


def test_publishing_again_sends_no_file_and_makes_no_commit(hub, folder, tmp_path):
    first = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert (hub.count("PUT /storage"), hub.count("/commit/main")) == (2, 1)
    second = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert second.stdout == first.stdout
    assert (hub.count("PUT /storage"), hub.count("/commit/main")) == (2, 1)


@pytest.mark.parametrize(
    ("status", "word"),
    [(401, "hf auth login"), (403, "write permission"), (404, "not found"), (500, "try again later")],
)
def test_a_refusal_ends_in_one_line_that_says_what_to_do_and_hides_the_token(hub, folder, tmp_path, status, word):
    hub.faults.append(["", status, 100])
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert word in run.stderr
    assert str(status) in run.stderr
    assert TOKEN not in run.stdout + run.stderr
    # Only what may be gone in a moment is tried again.
    assert hub.count("/create") == (3 if status == 500 else 1)


@pytest.mark.parametrize(
    "fault",
    [
        ["/create", 429, 2],
        ["/create", 503, 1],
        ["/create", 409, 2],
        ["/branch/", 503, 1],
        ["/commit/", 409, 2],
        ["/commit/", 503, 1],
        ["objects/batch", 429, 1],
        ["PUT /storage", "cut", 1],
    ],
    ids=str,
)
def test_a_busy_hub_and_a_cut_connection_are_tried_again(hub, folder, tmp_path, fault):
    hub.faults.append(fault)
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne", "--revision", "nightly")
    assert run.returncode == 0, run.stderr
    assert fault[2] == 0
    assert run.stderr == ""
    assert hub.repositories["someone/nocturne"].files("nightly") == held_by(folder)


@pytest.mark.parametrize(
    ("part", "status", "word"),
    [
        ("/create", 409, "changed elsewhere"),
        ("/commit/", 409, "changed elsewhere"),
        ("/create", 429, "too many requests"),
    ],
)
def test_a_hub_that_stays_busy_is_given_up_in_one_line(hub, folder, tmp_path, part, status, word):
    hub.faults.append([part, status, 100])
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert word in run.stderr


def test_an_upload_that_failed_is_taken_up_where_it_was(hub, folder, tmp_path):
    hub.faults.append(["/commit/", 403, 1])
    assert run_publish(hub.environment(tmp_path), folder, "someone/nocturne").returncode == 2
    assert hub.count("PUT /storage") == 2
    assert run_publish(hub.environment(tmp_path), folder, "someone/nocturne").returncode == 0
    assert hub.count("PUT /storage") == 2
    assert hub.repositories["someone/nocturne"].files() == held_by(folder)


def test_the_token_is_in_no_output_and_no_file(hub, folder, tmp_path):
    environment = hub.environment(tmp_path / "home", HF_DEBUG="1")
    runs = [run_publish(environment, folder, "someone/nocturne")]
    hub.faults.append(["/preupload/", 403, 1])
    runs.append(run_publish(environment, folder, "someone/nocturne"))
    assert [run.returncode for run in runs] == [0, 2]
    assert not any(TOKEN in run.stdout + run.stderr for run in runs)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_offline_ends_in_one_line(hub, folder, tmp_path):
    run = run_publish(hub.environment(tmp_path, HF_HUB_OFFLINE="1"), folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr == "hub.publish: someone/nocturne was not published: HF_HUB_OFFLINE is set; unset it.\n"


def test_no_token_ends_in_one_line(hub, folder, tmp_path):
    environment = hub.environment(tmp_path)
    del environment["HF_TOKEN"]
    run = run_publish(environment, folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "hf auth login" in run.stderr


def test_a_hub_that_does_not_answer_ends_in_one_line(hub, folder, tmp_path):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        run = run_publish(hub.environment(tmp_path, HF_ENDPOINT=url), folder, "someone/nocturne")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "could not be reached" in run.stderr


@pytest.mark.parametrize(
    "missing",
    [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "README.md",
        "modeling_music_tx.py",
    ],
)
def test_an_incomplete_folder_is_refused_by_the_name_of_what_is_missing(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        check_folder(folder)


def test_files_that_do_not_belong_to_a_model_and_links_are_not_sent_and_named(hub, folder, tmp_path):
    arriving = held_by(folder)
    others = ["pytorch_model.bin", "training_args.pkl", ".env", "credentials.json", "secret.py", "run.json"]
    for name in others:
        (folder / name).write_bytes(b"secret")
    (tmp_path / "outside.wav").write_bytes(b"secret")
    (folder / "sample.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "notes\x1b[2J.md").write_bytes(b"secret")
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert run.returncode == 0, run.stderr
    assert hub.repositories["someone/nocturne"].files() == arriving
    others += ["notes\\x1b[2J.md", "sample.wav"]
    assert run.stderr == f"not published: {', '.join(sorted(others))}\n"


@pytest.mark.parametrize("kept", [0, 2, -1])
def test_broken_weights_are_refused_before_anything_is_sent(hub, folder, tmp_path, kept):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:kept])
    run = run_publish(hub.environment(tmp_path), folder, "someone/nocturne")
    assert run.returncode == 2
    assert "model.safetensors is broken" in run.stderr
    assert hub.requests == []


def test_a_model_saved_without_its_code_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "music_tx"}')
    with pytest.raises(ValueError, match="AutoConfig"):
        check_folder(folder)


def test_a_sharded_model_is_as_good_as_one_file(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embedding": "model-00001-of-00001.safetensors"}}))
    check_folder(folder)


@pytest.mark.parametrize(
    "index",
    ["", "{}", '{"weight_map": ["embedding"]}', '{"weight_map": {"embedding": "model-00002-of-00002.safetensors"}}'],
)
def test_an_index_of_shards_that_are_not_there_is_refused(folder, index):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json (is broken|names tensors)"):
        check_folder(folder)


def test_weights_without_a_tensor_are_refused(folder):
    save_file({}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="without a tensor"):
        check_folder(folder)


def test_a_card_without_a_license_is_refused(folder):
    (folder / "README.md").write_text("---\ntags: [music]\n---\n# Nocturne\n")
    with pytest.raises(ValueError, match="license"):
        check_folder(folder)


def test_a_name_that_is_no_repository_is_refused_before_anything_is_sent(hub, folder, tmp_path):
    run = run_publish(hub.environment(tmp_path), folder, "nocturne")
    assert run.returncode == 2
    assert run.stderr == "hub.publish: nocturne is not a repository of the Hub; write it as user/name.\n"
    assert hub.requests == []


@pytest.fixture
def page(tmp_path):
    """A folder of the shape that `hub.web` leaves."""
    folder = tmp_path / "site"
    for name in (*PAGE, "decoder.onnx", "samples/A0v8.mp3", "samples/Ds1v8.mp3", "samples/rel1.mp3"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "model.json").write_text(json.dumps({"program": {"file": "decoder.onnx", "bytes": 12}}))
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\nsdk: static\n---\n\n# Play\n")
    return folder


def test_a_page_becomes_a_static_space_with_the_files_that_belong_to_it(hub, page, tmp_path):
    (page / "notes.txt").write_text("mine")
    run = run_publish(hub.environment(tmp_path), page, "someone/play")
    assert run.returncode == 0, run.stderr
    assert run.stderr == "not published: notes.txt\n"
    repository = hub.repositories["someone/play"]
    assert (repository.kind, repository.sdk) == ("space", "static")
    sent = {name: content for name, content in repository.files().items() if name != ".gitattributes"}
    assert sent.pop("samples/Ds1v8.mp3") == b"samples/Ds1v8.mp3"
    assert {*sent} == {*PAGE, "decoder.onnx", "samples/A0v8.mp3", "samples/rel1.mp3"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("worker.js", None, "has no worker.js; write the page with python -m hub.web"),
        ("model.json", b"{}", "model.json is broken"),
        ("decoder.onnx", b"cut", "has no decoder.onnx of 12 bytes"),
        ("README.md", b"---\nsdk: static\n---\n", "names no license"),
    ],
)
def test_a_page_that_would_not_play_is_refused(page, name, content, said):
    (page / name).unlink() if content is None else (page / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        check_page(page)


def test_a_page_without_samples_is_refused(page):
    shutil.rmtree(page / "samples")
    with pytest.raises(ValueError, match="no samples"):
        check_page(page)
