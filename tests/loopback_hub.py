"""The Hugging Face Hub on this machine: the routes that creating, uploading and loading a model touch, over real HTTP.

It keeps repositories in memory, requires its token for writes and private repositories, and injects faults.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_atokenthatmustneactioneseen"

# As on the Hub, weights and pictures are large files whatever their size: they are sent apart from the commit.
LARGE_SUFFIXES = (".safetensors", ".png")

FIXED_ROUTES = ("/api/repos/create", "/api/validate-yaml")


class Repository:
    """A model or Space: commits by their id, each a whole folder, and branches and tags that name commits."""

    def __init__(self, private: bool, kind: str = "model", sdk: str | None = None):
        self.private, self.kind, self.sdk = private, kind, sdk
        self.commits = {}
        self.names = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Put a folder on a branch as its new commit."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.names[branch] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own id means."""
        return self.names.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        return self.commits[self.sha(revision)]


class LoopbackHub(ThreadingHTTPServer):
    """The server; use it as a context manager.

    `faults` is a list of `[part of the path, answer, how often]`: as often as it says, requests whose method and path
    hold the part get that status, or with the answer "cut" lose their connection in the middle of the body. What has
    happened stands in `requests`, as method and path.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {}
        self.large_files = {}
        self.requests = []
        self.faults = []
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """What a process needs to take this for the Hub: huggingface_hub reads its environment once, on import."""
        return {
            "PATH": os.environ["PATH"],
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def count(self, part: str) -> int:
        """How many requests there were with this in their method and path."""
        return sum(part in request for request in self.requests)

    def next_fault(self, request: str) -> int | str | None:
        """What is to go wrong with a request, counting it down."""
        with self.lock:
            for entry in self.faults:
                if entry[0] in request and entry[2] > 0:
                    entry[2] -= 1
                    return entry[1]
        return None


class _Handler(BaseHTTPRequestHandler):
    """The routes. Every reply to a refusal repeats the token it was sent, as careless servers do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.route()

    def do_HEAD(self):
        self.route()

    def do_POST(self):
        self.route()

    def do_PUT(self):
        self.route()

    def route(self):
        hub, path = self.server, self.path.split("?")[0]
        request = f"{self.command} {path}"
        hub.requests.append(request)
        fault = hub.next_fault(request)
        length = int(self.headers.get("Content-Length", 0))
        if fault == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return None
        self.body = self.rfile.read(length)
        if fault:
            return self.refuse(fault)
        allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if self.command == "PUT":
            # The address itself is the permission, as with the storage behind the Hub.
            hub.large_files[path.split("/")[-1]] = self.body
            return self.reply({})
        if path in FIXED_ROUTES and not allowed:
            return self.refuse(401)
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        match = re.fullmatch(r"/(?:api/(?:models|spaces)/|spaces/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?", path)
        return self.repository(allowed, *match.groups()) if match else self.refuse(404)

    def create(self, request: dict):
        hub = self.server
        name = f"{request.get('organization') or 'someone'}/{request['name']}"
        answer = {"url": f"{hub.url}/{name}", "name": name}
        if name in hub.repositories:
            return self.reply(answer | {"error": "You already created this model repo"}, 409)
        private = request.get("private") or request.get("visibility") == "private"
        kind = request.get("type") or "model"
        hub.repositories[name] = Repository(bool(private), kind, request.get("sdk"))
        return self.reply(answer)

    def repository(self, allowed: bool, name: str, rest: str | None):
        repository = self.server.repositories.get(name)
        reading = self.command in ("GET", "HEAD")
        if repository is None or (repository.private and not allowed):
            return self.refuse(401 if not allowed else 404, "RepoNotFound")
        if not reading and not allowed:
            return self.refuse(401)
        _, action, *others = (rest or "/revision/main").split("/")
        if action == "resolve":
            return self.resolve(repository, others[0], "/".join(others[1:]))
        if action in ("tree", "revision") and reading:
            sha = repository.sha(others[0])
            if sha is None:
                return self.refuse(404, "RevisionNotFound")
            files = repository.commits[sha]
            if action == "tree":
                return self.reply([describe(path, content) for path, content in files.items()])
            names = [{"rfilename": path} for path in files]
            facts = {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": names}
            return self.reply(facts | {"tags": [], "downloads": 0, "likes": 0})
        body = self.body if action == "commit" else json.loads(self.body or b"{}")
        if action == "branch":
            repository.names.setdefault(others[0], repository.sha(body.get("startingPoint") or "main"))
            return self.reply({})
        if action == "tag":
            repository.names[body["tag"]] = repository.sha(others[0])
            return self.reply({})
        if action == "preupload":
            return self.reply({"files": [self.plan(repository.files(others[0]), file) for file in body["files"]]})
        if action == "info":
            return self.reply({"transfer": "basic", "objects": [self.destination(entry) for entry in body["objects"]]})
        return self.commit(name, repository, others[0], body)

    def plan(self, held: dict[str, bytes], file: dict) -> dict:
        """How a file is to be sent, and what of that name is there."""
        path = file["path"]
        large = path.endswith(LARGE_SUFFIXES)
        oid = (sha256 if large else blob_sha)(held[path]) if path in held else None
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def destination(self, entry: dict) -> dict:
        """Where a large file is to be put; nowhere, if it is there."""
        if entry["oid"] not in self.server.large_files:
            entry["actions"] = {"upload": {"href": f"{self.server.url}/storage/{entry['oid']}"}}
        return entry

    def commit(self, name: str, repository: Repository, branch: str, body: bytes):
        files = dict(repository.files(branch))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.server.large_files[line["value"]["oid"]]
        sha = repository.commit(branch, files)
        return self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def resolve(self, repository: Repository, revision: str, path: str):
        sha = repository.sha(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound")
        content = repository.commits[sha].get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob_sha(content)}"', "Content-Type": "application/octet-stream"}
        if path.endswith(LARGE_SUFFIXES):
            headers |= {"ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            headers["X-Linked-Etag"] = headers["ETag"]
        return self.send(content, 200, headers)

    def refuse(self, status: int, code: str = "", headers: dict[str, str] | None = None):
        """Answer with an error; one that passes is over at once."""
        headers = {"Retry-After": "0", **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.send(json.dumps({"error": f"no: {self.headers['Authorization']}"}).encode(), status, headers)

    def reply(self, content, status: int = 200):
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def send(self, body: bytes, status: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def describe(path: str, content: bytes) -> dict:
    """A file as the listing of a folder has it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob_sha(content)}
    if path.endswith(LARGE_SUFFIXES):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return entry


def blob_sha(content: bytes) -> str:
    """Git's name for a blob, by which the client sees that a file is there already."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    """The name of a large file."""
    return hashlib.sha256(content).hexdigest()
