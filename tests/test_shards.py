"""A streamed corpus gives what was written, divides it among readers, and continues where a reader stopped."""

import base64
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets.distributed import split_dataset_by_node
from torch.utils.data import BatchSampler, DataLoader

from corpus import shards
from corpus.dataset import Crops, EvaluationWindows, load_corpus, load_report, load_tokenizer
from corpus.prepare import main
from corpus.shards import SplitWriter, StreamedPieces
from tokenization import MusicTxTokenizer

CHECKOUT = Path(__file__).parents[1]
COMMIT = "c" * 40

BOS, EOS = 1, 2
LENGTHS = np.random.default_rng(0).integers(2, 300, 60)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A corpus in many shards, whose tokens tell where they stand."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, lengths in (("train", LENGTHS), ("validation", LENGTHS[:5]), ("test", [])):
        writer, first = SplitWriter(folder / split), 3
        for number, length in enumerate(lengths):
            ids = np.array([BOS, *range(first, first + length - 2), EOS], dtype=np.uint16)
            weight = 0.5 if number % 3 == 0 else 1.0
            row = {"name": f"piece {number}", "composer": "Bach", "title": "", "weight": weight, "input_ids": ids}
            writer.write(row)
            first += length - 2
        writer.close(split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    (folder / "report.json").write_text(json.dumps({"fingerprint": "of the corpus"}))
    MusicTxTokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def url(folder):
    return folder.as_uri()


@pytest.fixture
def fetched(monkeypatch):
    """The names of the files that were opened from afar."""
    names, opened = [], shards.fsspec.open

    def note(url, **options):
        names.append(url.rpartition("/")[2])
        return opened(url, **options)

    monkeypatch.setattr(shards.fsspec, "open", note)
    return names


def tokens(example):
    return example["input_ids"][example["labels"] != -100].tolist()


def batches(crops, first, last, process, num_processes, batch_size):
    """The batches of one process, as Accelerate deals them out."""
    dealt = BatchSampler(range(first, last), batch_size, drop_last=False)
    own = BatchSamplerShard(dealt, num_processes, process, even_batches=False)
    return [[crops[index] for index in batch] for batch in own]


def test_what_is_written_is_what_datasets_load(folder):
    rows = load_corpus(folder)["train"]
    assert [len(ids) for ids in rows["input_ids"]] == LENGTHS.tolist()
    assert rows["name"][:2] == ["piece 0", "piece 1"]
    assert rows.features == shards.FEATURES
    assert len(load_corpus(folder)["test"]) == 0


def test_no_file_is_larger_than_the_bound_and_one_piece(folder):
    sizes = [path.stat().st_size for path in (folder / "train").glob("data-*.arrow")]
    assert len(sizes) > 8
    # A piece, the names, and what Arrow says of itself.
    assert max(sizes) < 2000 + 600 + 3000


@pytest.mark.parametrize("windows", [Crops, EvaluationWindows])
def test_a_stream_holds_the_same_windows_as_the_folder(folder, url, windows):
    local, streamed = (windows(load_corpus(corpus)["train"], 64) for corpus in (folder, url))
    assert len(local) == len(streamed)
    assert Counter(tuple(tokens(streamed[i])) for i in range(len(local))) == Counter(
        tuple(tokens(local[i])) for i in range(len(local))
    )


def test_one_epoch_of_a_stream_reads_every_shard_once(url, folder, fetched):
    crops = Crops(load_corpus(url)["train"], 64)
    fetched.clear()
    for index in range(len(crops)):
        crops[index]
    assert sorted(fetched) == sorted(path.name for path in (folder / "train").glob("data-*.arrow"))


@pytest.mark.parametrize("epoch", [0, 3])
def test_two_processes_see_every_example_of_a_streamed_epoch_once_and_none_twice(folder, url, epoch):
    whole = Crops(load_corpus(folder)["train"], 64, seed=1)
    crops = Crops(load_corpus(url)["train"], 64, seed=1, num_processes=2, batch_size=4)
    first, last = epoch * len(crops), (epoch + 1) * len(crops)
    shares = [batches(crops, first, last, process, 2, 4) for process in range(2)]
    seen = Counter(tuple(tokens(example)) for share in shares for batch in share for example in batch)
    assert seen == Counter(tuple(tokens(whole[index])) for index in range(first, last))
    assert abs(len(shares[0]) - len(shares[1])) <= 1


def test_processes_read_different_shards(url, fetched):
    read = []
    for process in range(2):
        crops = Crops(load_corpus(url)["train"], 64, num_processes=2, batch_size=4)
        fetched.clear()
        # The end of an epoch, where the shares differ, aside.
        batches(crops, 0, len(crops) * 8 // 10, process, 2, 4)
        assert len(fetched) == len(set(fetched))
        read.append(set(fetched))
    assert not read[0] & read[1]
    assert read[0]
    assert read[1]


def test_a_stream_resumes_where_it_stopped_and_fetches_no_more_than_it_needs(url, fetched):
    crops = Crops(load_corpus(url)["train"], 64, seed=2)
    stopped_at = len(crops) + len(crops) // 2
    expected = [crops[index] for index in range(stopped_at + 3)][stopped_at:]
    resumed = Crops(load_corpus(url)["train"], 64, seed=2)
    fetched.clear()
    again = [resumed[index] for index in range(stopped_at, stopped_at + 3)]
    assert all(torch.equal(left["input_ids"], right["input_ids"]) for left, right in zip(again, expected, strict=True))
    assert len(fetched) <= 2


def test_a_stream_keeps_a_few_shards_in_memory(url):
    pieces = load_corpus(url)["train"]
    for row in range(len(pieces)):
        assert len(pieces[row, 0:]) == LENGTHS[row]
    assert len(pieces._tokens) == shards.SHARDS_KEPT


def test_a_stream_travels_to_workers_without_what_it_has_read(url):
    crops = Crops(load_corpus(url)["train"], 64, seed=3)
    assert len(pickle.dumps(crops.rows)) < 1000
    loader = DataLoader(crops, 4, sampler=range(12), num_workers=2, multiprocessing_context="fork")
    ids = torch.cat([batch["input_ids"] for batch in loader])
    assert torch.equal(ids, torch.stack([crops[index]["input_ids"] for index in range(12)]))


def test_tokenizer_and_report_come_from_where_the_corpus_is(folder, url):
    for corpus in (folder, url):
        assert load_report(corpus) == {"fingerprint": "of the corpus"}
        assert load_tokenizer(corpus).get_vocab() == MusicTxTokenizer().get_vocab()


def test_an_address_without_a_corpus_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is not a prepared corpus"):
        load_corpus(f"{tmp_path.as_uri()}/nothing")


def test_a_shard_that_is_not_its_index_s_is_refused(folder, url):
    pieces = load_corpus(url)["train"]
    (folder / "train/data-00001.arrow").write_bytes((folder / "train/data-00000.arrow").read_bytes())
    with pytest.raises(ValueError, match="shard 1 is not the one"):
        pieces[int(np.flatnonzero(pieces.shard_of_row == 1)[0]), 0:]


def test_composers_come_with_the_index_and_an_older_index_has_none(folder, url):
    index = folder / "train/index.arrow"
    assert load_corpus(url)["train"].composers == ["Bach"] * len(LENGTHS)
    table = pa.ipc.open_stream(index.read_bytes()).read_all().drop_columns(["composer"])
    with pa.OSFile(str(index), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    pieces = load_corpus(url)["train"]
    assert pieces.composers == [""] * len(LENGTHS)


def test_datasets_stream_the_files_as_they_are_and_split_them_by_node(folder):
    files = {"train": str(folder / "train/data-*.arrow")}
    streamed = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True)
    shares = [[row["name"] for row in split_dataset_by_node(streamed, node, 2)] for node in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(f"piece {number}" for number in range(len(LENGTHS)))


@pytest.mark.parametrize("corpus", ["folder", "url"])
def test_half_the_weight_is_every_other_epoch(corpus, request):
    crops = Crops(load_corpus(request.getfixturevalue(corpus))["train"], 64)
    windows = -(-LENGTHS // 64)
    light, full = int(windows[::3].sum()), int(windows.sum() - windows[::3].sum())
    assert len(crops) == full + round(light / 2)
    names = np.repeat(np.arange(len(LENGTHS)), LENGTHS - 2)  # the piece of each token, less 3
    for epochs in (range(2), range(5, 7)):
        visits = Counter()
        for epoch in epochs:
            in_epoch = [tokens(crops[epoch * len(crops) + place]) for place in range(len(crops))]
            visits.update(names[next(id_ - 3 for id_ in ids if id_ > 2)] for ids in in_epoch if max(ids) > 2)
        for number, length in enumerate(LENGTHS):
            if length > 2 and number % 3:
                assert visits[number] == 2 * windows[number]
        assert abs(sum(visits[number] for number in range(0, len(LENGTHS), 3) if LENGTHS[number] > 2) - light) <= 1
    assert isinstance(crops.rows, StreamedPieces) == (corpus == "url")


class LoopbackHub(ThreadingHTTPServer):
    """As much of the Hub as publishing and streaming the data set someone/music touch, on this machine."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), LoopbackHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created = None  # the body of the request that made the repository
        self.files = {"train/data-00009.arrow": b"of an earlier corpus"}
        self.large_files = {}
        self.read = []  # the files that were asked for


class LoopbackHandler(BaseHTTPRequestHandler):
    """The routes: create, preupload, LFS batch and PUT, commit; revision, tree and resolve."""

    def do_GET(self):
        hub, path = self.server, unquote(urlparse(self.path).path)
        if found := re.fullmatch(f"/datasets/someone/music/resolve/{COMMIT}/(.+)", path):
            hub.read.append(found[1])
            first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
            content = hub.files[found[1]][int(first) : int(last) + 1 if last else None]
            return self.reply(content, 206 if self.headers["Range"] else 200)
        if found := re.fullmatch("/api/datasets/someone/music/tree/[^/]+/?(.*)", path):
            inside = [file for file in sorted(hub.files) if file.startswith(found[1])]
            folders = {str(Path(file).parent) for file in inside} - {".", found[1]}
            folders = [{"type": "directory", "path": folder, "oid": "", "size": 0} for folder in sorted(folders)]
            return self.reply_json(folders + [self.entry(file) for file in inside])
        if re.fullmatch("/api/datasets/someone/music(/revision/.+)?", path):
            return self.reply_json({"id": "someone/music", "sha": COMMIT})
        return self.reply_json({"error": "not here"}, 404)

    def entry(self, file):
        content = self.server.files[file]
        return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def do_POST(self):
        hub, path = self.server, urlparse(self.path).path
        content = [json.loads(line) for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()]
        if path == "/api/repos/create":
            hub.created = content[0]
            return self.reply_json({"url": f"{hub.url}/datasets/someone/music"})
        if path == "/api/validate-yaml":
            return self.reply_json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            for file in content[0]["files"]:
                file |= {"uploadMode": "lfs" if file["path"].endswith(".arrow") else "regular", "shouldIgnore": False}
            return self.reply_json(content[0])
        if path.endswith("/info/lfs/objects/batch"):
            for entry in content[0]["objects"]:
                entry["actions"] = {"upload": {"href": f"{hub.url}/large/{entry['oid']}"}}
            return self.reply_json({"transfer": "basic", "objects": content[0]["objects"]})
        for line in content:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del hub.files[value["path"]]
        return self.reply_json({"commitUrl": f"{hub.url}/datasets/someone/music/commit/{COMMIT}", "commitOid": COMMIT})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large_files[self.path.split("/")[-1]] = content
        self.reply_json({})

    def reply_json(self, content, status=200):
        self.reply(json.dumps(content).encode(), status)

    def reply(self, content, status):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_a_corpus_is_published_file_for_file_and_streamed_from_the_hub(midi_folder, tmp_path):
    # The address of the Hub is read when huggingface_hub is imported, so this is a process of its own.
    script = """
import json, sys
from corpus.dataset import Crops, load_corpus, load_report, load_tokenizer
from corpus.prepare import main
options = ["--num_workers", "1", "--push_to_hub", "someone/music"]
main(["folder", "--input", sys.argv[1], "--output_dir", sys.argv[2], *options])
local, streamed = (Crops(load_corpus(corpus)["train"], 64) for corpus in (sys.argv[2], "someone/music"))
assert len(local) == len(streamed)
seen = [sorted(crops[index]["input_ids"].tolist() for index in range(len(crops))) for crops in (local, streamed)]
assert seen[0] == seen[1]
assert load_report("someone/music") == load_report(sys.argv[2])
assert load_tokenizer("someone/music").get_vocab() == load_tokenizer(sys.argv[2]).get_vocab()
"""
    with LoopbackHub() as hub:
        threading.Thread(target=hub.serve_forever, args=[0.01], daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_atoken",
            "NO_PROXY": "127.0.0.1",
        }
        corpus = tmp_path / "corpus"
        run = subprocess.run(
            [sys.executable, "-c", script, midi_folder, corpus],
            cwd=CHECKOUT,
            env=environment,
            capture_output=True,
            text=True,
        )
        hub.shutdown()
    assert run.returncode == 0, run.stderr
    assert f"published: {hub.url}/datasets/someone/music" in run.stdout
    # As huggingface_hub says it since its version 2, or before.
    assert hub.created.get("visibility") == "private" or hub.created.get("private")
    assert hub.created["type"] == "dataset"
    files = {path.relative_to(corpus).as_posix(): path for path in corpus.rglob("*") if path.is_file()}
    assert hub.files == {name: path.read_bytes() for name, path in files.items()}
    assert hub.read.count("train/data-00000.arrow") == 1
    # By this head any user of `datasets` finds the splits.
    head = hub.files["README.md"].decode().split("---")[1]
    assert "license: other" in head
    assert "- split: validation\n    path: validation/data-*.arrow" in head


def test_what_keeps_a_corpus_from_the_hub_is_said_in_one_line_and_the_corpus_stands(
    midi_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    corpus = tmp_path / "corpus"
    words = ["folder", "--input", str(midi_folder), "--output_dir", str(corpus), "--push_to_hub", "someone/music"]
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "is prepared but not published" in line
    assert f"hf upload someone/music {corpus} --repo-type dataset" in line
    assert load_corpus(corpus)
    with pytest.raises(FileNotFoundError, match=r"someone/music is not a prepared corpus.*Nor is it on the Hub"):
        load_corpus("someone/music")
