"""A Hugging Face Hub on loopback: enough of its protocol for the real client to make repositories, commit, list and download.

Files ending in .safetensors go through LFS's basic transfer and come back by a redirect, as from the Hub's storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from server import Served, Server, sha256

ROOT = "0" * 40  # the commit that a new repository starts with
REPO = r"(?P<repo>[\w-]+/[\w.-]+)"
NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


@dataclass
class Repo:
    """Every commit's files, and which commit each branch is at."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {ROOT: {".gitattributes": b"*.safetensors lfs\n"}}
    )
    branches: dict[str, str] = field(default_factory=lambda: {"main": ROOT})

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        listing = json.dumps({path: sha256(content) for path, content in files.items()})
        commit = hashlib.sha1(f"{self.branches[branch]} {listing}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass(frozen=True)
class Answer:
    status: int = 200
    content: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Hub(Server):
    """`tokens` maps a token to the namespaces it may write to; any of them may read private repositories.

    A twist with a `status` refuses a request, one with `hold` answers after `release`.
    """

    def __init__(self, tokens: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.tokens = tokens
        self.store = self.url.replace(
            "127.0.0.1", "localhost"
        )  # another host, to which the client sends no token
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.cards: list[str] = []  # that were validated

    def put_repo(self, name: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Make these the files of a repository's main branch; the commit."""
        repo = self.repos.setdefault(name, Repo(private))
        self.storage |= {
            sha256(content): content
            for file, content in files.items()
            if file.endswith(".safetensors")
        }
        return repo.commit("main", dict(files))

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        if handler.command in ("GET", "HEAD") and "/resolve/" in path:
            if refusal := self._place(handler, path):
                self.record(handler)
                self._send(handler, refusal)
            else:
                super().answer(handler)
        elif (
            path == "/api/agent-harnesses"
        ):  # what the client asks once a day to name itself, whatever it is about to do
            self._send(handler, Answer(200, {"standardEnvVars": [], "harnesses": {}}))
        elif path.startswith("/storage/") and handler.command in ("GET", "HEAD"):
            content = self.storage[path.rsplit("/", 1)[1]]
            self.files[handler.path] = Served(content, f'"{sha256(content)}"', None)
            super().answer(handler)
        else:
            body = _read_body(handler)
            twist = self.record(handler)
            if twist.hold is not None:
                self.release.wait()
            self._send(
                handler, Answer(twist.status) if twist.status else self._route(handler, path, body)
            )

    def _place(self, handler: BaseHTTPRequestHandler, path: str) -> Answer | None:
        """Put what lies at a /resolve/ path in place to be served; the refusal if nothing is to be."""
        self.files.pop(handler.path, None)
        match = re.fullmatch(rf"/{REPO}/resolve/(?P<rest>.+)", path)
        repo = self.repos.get(match["repo"]) if match else None
        if (
            match is None
            or repo is None
            or (repo.private and self._token(handler) not in self.tokens)
        ):
            return Answer(401, None, NOT_FOUND)
        names = [
            name for name in (*repo.branches, *repo.commits) if match["rest"].startswith(f"{name}/")
        ]
        if not names:
            return Answer(
                404, None, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}
            )
        commit = repo.find(names[0])
        assert commit
        file = match["rest"].removeprefix(f"{names[0]}/")
        content = repo.commits[commit].get(file)
        if content is None:
            return Answer(404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if file.endswith(".safetensors"):
            linked = {"X-Linked-ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            return Answer(
                302,
                None,
                {
                    "X-Repo-Commit": commit,
                    "Location": f"{self.store}/storage/{sha256(content)}",
                    **linked,
                },
            )
        self.files[handler.path] = Served(
            content, f'"{_git_hash(content)}"', None, {"X-Repo-Commit": commit}
        )
        return None

    def _route(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> Answer:
        token = self._token(handler)
        if path.startswith("/storage/"):
            if sha256(body) != path.rsplit("/", 1)[1]:
                return Answer(400, {"error": "content does not match its oid"})
            self.storage[sha256(body)] = body
            return Answer()
        if token is not None and token not in self.tokens:
            return Answer(
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return Answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        match = re.fullmatch(
            rf"/(?:api/models/)?{REPO}/?(?P<verb>\w*)(?:/(?P<rest>.+))?",
            path.replace(".git/info/", "/"),
        )
        repo = self.repos.get(match["repo"]) if match else None
        if match is None or repo is None or (repo.private and token is None):
            return Answer(401, None, NOT_FOUND)
        verb, revision = match["verb"], match["rest"]
        if handler.command == "POST" and match["repo"].split("/")[0] not in self.tokens.get(
            token or "", ()
        ):
            return Answer(403, {"error": "Forbidden"}, {"X-Error-Message": "you need write access"})
        if verb == "branch":
            new = revision not in repo.branches
            repo.branches.setdefault(revision, repo.branches["main"])
            return Answer(200 if new else 409)
        if verb == "lfs":
            return Answer(
                200,
                {
                    "transfer": "basic",
                    "objects": [self._offer(each) for each in json.loads(body)["objects"]],
                },
            )
        commit = repo.find(revision or "main")
        if commit is None:
            return Answer(
                404,
                None,
                {
                    "X-Error-Code": "RevisionNotFound",
                    "X-Error-Message": f"Invalid rev id: {revision}",
                },
            )
        files = repo.commits[commit]
        match verb:
            case "tree":
                return Answer(
                    200,
                    [
                        {"type": "file", "path": name, "size": len(c), "oid": _oid(name, c)}
                        for name, c in files.items()
                    ],
                )
            case "preupload":
                return Answer(
                    200,
                    {
                        "files": [
                            _choose_mode(each["path"], files) for each in json.loads(body)["files"]
                        ]
                    },
                )
            case "commit":
                return self._commit(
                    match["repo"], repo, revision, [json.loads(line) for line in body.splitlines()]
                )
            case "" | "revision":
                siblings = [{"rfilename": name} for name in files]
                return Answer(
                    200,
                    {
                        "id": match["repo"],
                        "sha": commit,
                        "private": repo.private,
                        "siblings": siblings,
                    },
                )
        return Answer(404)

    def _create(self, asked: dict[str, Any], token: str | None) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if token is None:
            return Answer(401, {"error": "Invalid username or password."})
        if asked["organization"] not in self.tokens[token]:
            return Answer(
                403, {"error": f"no rights to create a model under {asked['organization']}"}
            )
        status = 409 if name in self.repos else 200
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos.setdefault(name, Repo(private))
        return Answer(status, {"url": f"{self.url}/{name}", "name": name})

    def _offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.storage:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.store}/storage/{wanted['oid']}"}}}

    def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> Answer:
        files = dict(repo.commits[repo.branches[branch]])
        for value, key in ((line["value"], line["key"]) for line in lines):
            match key:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.storage:
                        return Answer(400, {"error": f"{value['path']} was not uploaded"})
                    files[value["path"]] = self.storage[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.commit(branch, files)
        return Answer(
            200,
            {
                "commitUrl": f"{self.url}/{name}/commit/{commit}",
                "commitOid": commit,
                "success": True,
            },
        )

    @staticmethod
    def _token(handler: BaseHTTPRequestHandler) -> str | None:
        value = handler.headers.get("Authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        body = b"" if answer.content is None else json.dumps(answer.content).encode()
        handler.send_response(answer.status)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        for name, value in {**headers, **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


def _choose_mode(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    oid = _oid(name, files[name]) if name in files else None
    return {
        "path": name,
        "uploadMode": "lfs" if name.endswith(".safetensors") else "regular",
        "shouldIgnore": False,
        "oid": oid,
    }


def _oid(name: str, content: bytes) -> str:
    return sha256(content) if name.endswith(".safetensors") else _git_hash(content)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body
