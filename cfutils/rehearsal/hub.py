"""A hub on this machine's loopback: a folder of repositories, served in as much of the hub's protocol as is used.

huggingface_hub, datasets and vLLM fetch from it by name and revision as they do from huggingface.co, once HF_ENDPOINT
names it: repository information with siblings and commit, trees, paths-info, access checks, and files with ETag,
X-Repo-Commit, HEAD and ranges. Errors carry the hub's X-Error-Code, from which clients make their exceptions.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

NAME = r"(?P<repo>[^/]+(?:/[^/]+)?)"
INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}(?:/revision/(?P<revision>[^/]+))?")
ACCESS = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/auth-check")
TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?")
PATHS = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/paths-info/(?P<revision>[^/]+)")
FILE = re.compile(rf"(?:/(?P<kind>datasets))?/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
DATE = "2025-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Repository:
    """A folder of files under a name, at one commit."""

    kind: str
    """models or datasets."""
    name: str
    folder: Path
    revisions: tuple[str, ...] = ("main",)
    """Branches and tags of that commit."""
    gated: bool = False
    """Whether its files are for those alone who send a token."""

    @cached_property
    def files(self) -> dict[str, tuple[bytes, str]]:
        """Content and its digest by path."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                found[path.relative_to(self.folder).as_posix()] = content, hashlib.sha1(content).hexdigest()
        return found

    @cached_property
    def commit(self) -> str:
        """What stands for a commit: a digest of all paths and contents."""
        listed = "\n".join(f"{path} {digest}" for path, (_, digest) in self.files.items())
        return hashlib.sha1(listed.encode()).hexdigest()

    def info(self) -> dict[str, Any]:
        """Return what the hub tells of a repository."""
        return {
            "_id": self.commit[:24], "id": self.name, "sha": self.commit, "private": False, "disabled": False,
            "gated": "auto" if self.gated else False, "downloads": 0, "likes": 0, "tags": [], "lastModified": DATE,
            "createdAt": DATE, "siblings": [{"rfilename": path} for path in self.files],
        }  # fmt: skip

    def entry(self, path: str) -> dict[str, Any] | None:
        """Return what a tree lists of a file or a folder, None for neither."""
        path = path.strip("/")
        if path in self.files:
            content, digest = self.files[path]
            return {"type": "file", "path": path, "size": len(content), "oid": digest}
        if any(one.startswith(f"{path}/") for one in self.files):
            return {"type": "directory", "path": path, "size": 0, "oid": self.commit}
        return None

    def tree(self, path: str, *, recursive: bool) -> list[dict[str, Any]]:
        """Return the entries below a path; "" is the root."""
        begin = f"{path.strip('/')}/" if path.strip("/") else ""
        below: dict[str, None] = {}
        for one in self.files:
            if one.startswith(begin):
                parts = one[len(begin) :].split("/")
                for n in range(1, len(parts) + 1) if recursive else (1,):
                    below[begin + "/".join(parts[:n])] = None
        return [self.entry(one) for one in below]


@dataclass
class Hub:
    """The server, in threads of this process; a context manager.

    Serves `folder`/models/OWNER/NAME and `folder`/datasets/OWNER/NAME on a free port of 127.0.0.1.
    """

    folder: Path
    gated: frozenset[str] = frozenset()
    """Names of repositories that ask for a token."""
    revisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Branches and tags by name of repository, main where not named."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request, in order."""

    def __enter__(self) -> Self:
        self._found: dict[tuple[str, str], Repository] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, kind: str, name: str) -> Repository | None:
        """Return a repository as its folder was when it was first asked for, None if there is none."""
        folder = self.folder / kind / name
        if (kind, name) not in self._found and name.count("/") == 1 and ".." not in name and folder.is_dir():
            revisions = self.revisions.get(name, ("main",))
            self._found[kind, name] = Repository(kind, name, folder, revisions, name in self.gated)
        return self._found.get((kind, name))

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"  # clients keep connections

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = urllib.parse.parse_qs(query)
        matches = ((pattern.fullmatch(path), answer) for pattern, answer in ROUTES.items())
        found, answer = next((one for one in matches if one[0]), (None, None))
        if found is None:
            return self._error(HTTPStatus.NOT_FOUND, "", f"no such page: {path}")
        # after the match: a slash in the name of a branch is quoted
        asked = {name: urllib.parse.unquote(value) for name, value in found.groupdict().items() if value is not None}
        repository = self.hub.repository(asked.get("kind", "models"), asked["repo"])
        if repository is None:
            return self._error(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        revision = asked.get("revision", "main")
        if revision not in (*repository.revisions, repository.commit):
            return self._error(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        if repository.gated and answer in (_Handler._file, _Handler._access) and "Authorization" not in self.headers:
            why = f"Access to {repository.kind[:-1]} {repository.name} is restricted. You must have access to it."
            return self._error(HTTPStatus.UNAUTHORIZED, "GatedRepo", why)
        return answer(self, repository, asked.get("path", ""), query, body)

    do_HEAD = do_POST = do_GET

    def _info(self, repository: Repository, path: str, query: Mapping, body: bytes) -> None:
        self._json(repository.info())

    def _access(self, repository: Repository, path: str, query: Mapping, body: bytes) -> None:
        self._json({})

    def _tree(self, repository: Repository, path: str, query: Mapping, body: bytes) -> None:
        if path.strip("/") and repository.entry(path) is None:
            return self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{path} does not exist")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        return self._json(repository.tree(path, recursive=recursive))

    def _paths(self, repository: Repository, path: str, query: Mapping, body: bytes) -> None:
        try:
            wanted = json.loads(body)["paths"]
        except ValueError:  # a form, from some releases
            wanted = urllib.parse.parse_qs(body.decode()).get("paths", [])
        found = (repository.entry(one) for one in ([wanted] if isinstance(wanted, str) else wanted))
        self._json([entry for entry in found if entry])

    def _file(self, repository: Repository, path: str, query: Mapping, body: bytes) -> None:
        about = {"X-Repo-Commit": repository.commit}
        if path not in repository.files:
            return self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{path} does not exist", about)
        content, digest = repository.files[path]
        about |= {"ETag": f'"{digest}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not any(wanted.groups()):
            return self._send(HTTPStatus.OK, content, about)
        first, last = wanted.groups()
        begin = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if begin >= end:
            about["Content-Range"] = f"bytes */{len(content)}"
            return self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", about)
        about["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._send(HTTPStatus.PARTIAL_CONTENT, content[begin:end], about)

    def _json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: HTTPStatus, code: str, message: str, about: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {
            **(about or {}), **({"X-Error-Code": code} if code else {}), "X-Error-Message": message,
            "Content-Type": "application/json",
        })  # fmt: skip

    def _send(self, status: HTTPStatus, content: bytes, about: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in about.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Write nothing: `Hub.asked` holds the requests."""


ROUTES = {
    ACCESS: _Handler._access, TREE: _Handler._tree, PATHS: _Handler._paths, FILE: _Handler._file, INFO: _Handler._info,
}  # fmt: skip
"""What answers which path; the first that matches."""
