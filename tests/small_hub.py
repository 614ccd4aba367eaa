"""A small hub on 127.0.0.1 that speaks as much of the hub's protocol as loading a model needs."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

MAIN, STEP, OTHER = "a" * 40, "b" * 40, "c" * 40


class Repository:
    """What the small hub serves under one id."""

    def __init__(self, token: str | None = None, gated: bool = False) -> None:
        self.token, self.gated = token, gated
        self.refs = {"main": MAIN, "step3000": STEP}
        self.commits: dict[str, dict[str, bytes]] = {
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


class SmallHub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as loading a model needs, and keeps a record."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
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

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer(self) -> None:
        if self.server.down:
            return self.reply(503)
        path = unquote(urlsplit(self.path).path)
        kind = "api" if path.startswith("/api/models/") else "file"
        if path.startswith("/cdn/"):
            _, _, identifier, commit, filename = path.split("/", 4)
            files = self.server.repositories[identifier.replace("--", "/")].commits[commit]
            return self.reply(200, files[filename])
        if kind == "api":
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
            return self.reply(200, self.listing(identifier, commit, files, filename))
        self.send_file(identifier, commit, files, filename)

    def listing(self, identifier: str, commit: str, files: dict[str, bytes], what: str) -> bytes:
        if what == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            return json.dumps(entries).encode()
        siblings = [{"rfilename": name} for name in files]
        return json.dumps({"id": identifier, "sha": commit, "siblings": siblings}).encode()

    def send_file(self, identifier: str, commit: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[name]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        if name.endswith(".bin"):  # large files are redirected to another place
            linked = {"X_Linked_Etag": etag, "X_Linked_Size": str(len(data))}
            port, folder = self.server.server_address[1], identifier.replace("/", "--")
            place = f"http://localhost:{port}/cdn/{folder}/{commit}/{name}"
            return self.reply(302, Location=place, X_Repo_Commit=commit, **linked)
        self.reply(200, data, ETag=etag, X_Repo_Commit=commit)
