"""A small hub on 127.0.0.1: as much of the hub's protocol as loading and uploading a model need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".bin", ".safetensors")
MAIN, STEP, OTHER = "a" * 40, "b" * 40, "c" * 40


class Repository:
    """What the small hub serves under one id."""

    def __init__(self, token: str | None = None, gated: bool = False, empty: bool = False) -> None:
        self.token, self.gated = token, gated
        self.sha: str | None = None  # a commit to name instead of the right one
        self.headers: dict[str, str] = {}  # to send instead of the right ones
        self.damaged: set[str] = set()  # files that arrive with other bytes of the same number
        self.failing: dict[str, str] = {}  # files that do not arrive whole, and how: see ``fail``
        self.messages: list[str] = []
        if empty:
            self.refs = {"main": "0" * 40}
            self.commits: dict[str, dict[str, bytes]] = {"0" * 40: {}}
            return
        self.refs = {"main": MAIN, "step3000": STEP}
        self.commits = {
            MAIN: {
                "config.json": b"{}",
                "weights.bin": b"0123456789" * 1000,
                "sub/config.json": b'{"sub": 1}',
            },
            STEP: {"config.json": b'{"step": 3000}', "only-at-step.txt": b"x"},
        }

    def commit(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.refs.get(revision)

    def take(self, revision: str, lines: list[dict[str, Any]]) -> str:
        """Add a commit, in the hub's form: a header, then files; returns its id."""
        files = dict(self.commits[self.refs[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        commit = hashlib.sha1(repr(lines).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[revision] = commit
        return commit


class SmallHub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as loading and uploading need, and keeps a record."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.sent: list[int] = []  # bytes of each answer
        self.down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: SmallHub

    def log_message(self, format: str, *args: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.down:
            return self.reply(503)
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.reply(200, b'{"warnings": [], "errors": []}')
        if path == "/api/repos/create":
            wanted = json.loads(body)
            identifier = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            status = 409 if identifier in self.server.repositories else 200
            self.server.repositories.setdefault(identifier, Repository(empty=True))
            url = f"{self.server.url}/{identifier}"
            return self.reply(status, json.dumps({"url": url, "name": identifier}).encode())
        owner, name, what, revision = path.removeprefix("/api/models/").split("/", 3)
        repository = self.server.repositories[f"{owner}/{name}"]
        if what == "branch":
            repository.refs.setdefault(revision, repository.refs["main"])
            return self.reply(201, b"{}")
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self.reply(200, json.dumps({"files": modes}).encode())
        commit = repository.take(revision, [json.loads(line) for line in body.splitlines()])
        url = f"{self.server.url}/{owner}/{name}/commit/{commit}"
        self.reply(200, json.dumps({"commitUrl": url, "commitOid": commit}).encode())

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.server.sent.append(sum(map(len, self._headers_buffer)) + len(body))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self) -> None:
        if self.server.down:
            return self.reply(503)
        path = unquote(urlsplit(self.path).path)
        path = path.replace("/api/spaces/", "/api/models/space:")  # a Space is "space:owner/name"
        path = re.sub("^/spaces/", "/space:", path)
        kind = "api" if path.startswith("/api/models/") else "file"
        if path.startswith("/cdn/"):
            _, _, identifier, commit, filename = path.split("/", 4)
            repository = self.server.repositories[identifier.replace("--", "/")]
            data = repository.commits[commit][filename]
            if filename in repository.failing:
                return self.fail(data, repository.failing[filename])
            return self.send_part(data[::-1] if filename in repository.damaged else data)
        if kind == "api" and path.endswith("/refs"):
            identifier = path.removeprefix("/api/models/").removesuffix("/refs")
            known = self.server.repositories.get(identifier)
            revision, filename = next(iter(known.refs if known else ["main"])), "refs"
        elif kind == "api":
            owner, name, what, revision = path.removeprefix("/api/models/").split("/", 3)
            identifier, filename = f"{owner}/{name}", what
        elif "/resolve/" not in path:
            return self.reply(404)
        else:
            identifier, rest = path[1:].split("/resolve/", 1)
            revision, filename = rest.split("/", 1)
        repository = self.server.repositories.get(identifier)
        if repository is None:
            return self.reply(401, X_Error_Code="RepoNotFound")
        if repository.gated:
            return self.reply(403, X_Error_Code="GatedRepo")
        if repository.token and self.headers.get("authorization") != f"Bearer {repository.token}":
            return self.reply(401, X_Error_Code="RepoNotFound")
        commit = repository.commit(revision)
        if commit is None:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        files = repository.commits[commit]
        if kind == "api":
            named = repository.sha or commit
            return self.reply(200, self.listing(identifier, named, files, filename))
        if self.command == "GET" and filename in repository.failing and filename in files:
            if not filename.endswith(LARGE):
                return self.fail(files[filename], repository.failing[filename])
        self.send_file(identifier, commit, files, filename, repository.headers)

    def fail(self, data: bytes, how: str) -> None:
        """A file that is ``cut`` in the middle, ``short``, ``long``, or an answer of ``500``."""
        if how == "500":
            return self.reply(500, b"<html>out of order</html>")
        if how in ("short", "long"):
            return self.reply(200, data[: len(data) // 2] if how == "short" else data + b"more")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True

    def send_part(self, data: bytes) -> None:
        """A file from another place, or the part of it that is asked for."""
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.reply(200, data)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last or len(data)) + 1]
        told = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.reply(206, part, Content_Range=told)

    def listing(self, identifier: str, commit: str, files: dict[str, bytes], what: str) -> bytes:
        if what == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": target}
                for name, target in self.server.repositories[identifier].refs.items()
            ]
            return json.dumps({"branches": branches, "converts": [], "tags": []}).encode()
        if what == "tree":
            return json.dumps([_entry(name, data) for name, data in files.items()]).encode()
        siblings = [{"rfilename": name} for name in files]
        return json.dumps({"id": identifier, "sha": commit, "siblings": siblings}).encode()

    def send_file(
        self,
        identifier: str,
        commit: str,
        files: dict[str, bytes],
        name: str,
        others: dict[str, str],
    ) -> None:
        told = {"X_Repo_Commit": commit, **others}
        if name not in files:
            return self.reply(404, X_Error_Code="EntryNotFound", **told)
        data = files[name]
        if name.endswith(LARGE):  # large files are redirected to another place
            told = {"X_Linked_Etag": f'"{hashlib.sha256(data).hexdigest()}"', **told}
            port, folder = self.server.server_address[1], identifier.replace("/", "--")
            place = f"http://localhost:{port}/cdn/{folder}/{commit}/{name}"
            return self.reply(302, Location=place, X_Linked_Size=str(len(data)), **told)
        self.reply(200, data, **{"ETag": f'"{hashlib.sha1(data).hexdigest()}"', **told})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """A file in a listing, with hashes as the hub gives them."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry
