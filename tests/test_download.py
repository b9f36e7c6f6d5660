"""Downloads, from a server on this machine that does what servers do: cut the line, send another file, say no."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import numpy as np
import pytest

from corpus import download as downloading
from corpus.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/maestro/archive.zip"
        self.content = CONTENT
        self.statuses = []  # what the next requests are answered with in the place of the file
        self.cut_after = None  # bytes after which the line is cut, as long as it is set
        self.knows_ranges = True
        self.asked = []  # the path and the range of every request


class Handler(BaseHTTPRequestHandler):
    """GET, with ranges."""

    def do_GET(self):
        server, content = self.server, self.server.content
        server.asked.append((self.path, self.headers["Range"]))
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers["Range"] else 0
        if not server.knows_ranges:
            first = 0
        elif first >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : first + (server.cut_after or len(content))])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloading, "WAIT_SECONDS", 0.0)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    huggingface_hub.close_session()  # what the environment says is read when a session is opened
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    huggingface_hub.close_session()


def test_a_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        file = download(server.url, SHA256, tmp_path)
        assert (file, file.read_bytes()) == (tmp_path / "archive.zip", CONTENT)
    assert server.asked == [("/maestro/archive.zip", None)]
    assert list(tmp_path.iterdir()) == [file]


def test_where_the_line_is_cut_the_download_goes_on(server, tmp_path):
    server.cut_after = 70_000
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    starts = [None if range_ is None else int(range_[6:-1]) for _, range_ in server.asked]
    assert starts == [None, 70_000, 140_000, 210_000, 280_000]


def test_what_a_killed_run_has_fetched_is_not_fetched_again(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(CONTENT[:123_456])
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/maestro/archive.zip", "bytes=123456-")]


def test_a_part_that_is_whole_is_taken_as_it_is(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(CONTENT)
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_sends_the_whole_file_again(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(CONTENT[:123_456])
    server.knows_ranges = False
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(OSError, match=f"another file than was published.*{SHA256}"):
        download(server.url, SHA256, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.content = CONTENT
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_file_that_has_changed_on_the_disk_is_fetched_again(server, tmp_path):
    (tmp_path / "archive.zip").write_bytes(CONTENT[:1000])
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429, 500]
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 4


def test_a_server_that_stays_busy_is_named_in_one_line(server, tmp_path):
    server.statuses = [503] * 100
    (tmp_path / "archive.zip.part").write_bytes(CONTENT[:1000])
    with pytest.raises(OSError, match=r"archive\.zip could not be fetched: the server answers 503") as raised:
        download(server.url, SHA256, tmp_path)
    assert "\n" not in str(raised.value)
    assert len(server.asked) == downloading.ATTEMPTS
    assert (tmp_path / "archive.zip.part").read_bytes() == CONTENT[:1000]


def test_a_server_that_does_not_have_the_file_is_asked_once(server, tmp_path):
    server.statuses = [404] * 100
    with pytest.raises(OSError, match="the server answers 404"):
        download(server.url, SHA256, tmp_path)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_named_in_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="could not be fetched") as raised:
        download(server.url, SHA256, tmp_path)
    assert "\n" not in str(raised.value)


def test_offline_nothing_is_asked_and_the_way_out_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set and archive\.zip is not in .*--input"):
        download(server.url, SHA256, tmp_path)
    (tmp_path / "archive.zip").write_bytes(CONTENT)
    assert download(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_a_proxy_is_respected(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    huggingface_hub.close_session()
    assert download("http://no.such.host/archive.zip", SHA256, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("http://no.such.host/archive.zip", None)]
