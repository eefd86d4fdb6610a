"""A Hugging Face Hub on loopback, for the real client: create, commit, list and download.

As on the Hub, files ending in .safetensors are uploaded by LFS's basic transfer and downloaded
through a redirect to the storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from server import ServedFile, Server, sha256

FIRST_COMMIT = "0" * 40  # of a new repository
REPO = r"(?P<repo>[\w-]+/[\w.-]+)"
NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


@dataclass
class Repo:
    """The files of every commit, and the commit of each branch."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {FIRST_COMMIT: {".gitattributes": b"*.safetensors lfs\n"}}
    )
    branches: dict[str, str] = field(default_factory=lambda: {"main": FIRST_COMMIT})

    def find_commit(self, revision: str) -> str | None:
        """Return the commit of a branch or commit id; None if it does not exist."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Make `files` the content of a branch; return the new commit."""
        listing = json.dumps({path: sha256(content) for path, content in files.items()})
        commit = hashlib.sha1(f"{self.branches[branch]} {listing}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass(frozen=True)
class Response:
    """Status, JSON content and headers."""

    status: int = 200
    content: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Hub(Server):
    """A server of repositories.

    A fault with a `status` rejects a request; one with `hold` delays the response until `release`
    is set.

    Args:
        tokens: namespaces that each token may write to; any token may read private repositories.
        certificate: PEM file of certificate and key, for https.
    """

    def __init__(
        self, tokens: Mapping[str, tuple[str, ...]], certificate: Path | None = None
    ) -> None:
        super().__init__(certificate)
        self.tokens = tokens
        # Another host name, so that the client sends it no token.
        self.storage_url = self.url.replace("127.0.0.1", "localhost")
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.cards: list[str] = []  # model cards that the client validated

    def put_repo(self, name: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Replace the files of a repository's main branch; return the new commit."""
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
            if error := self._prepare_file(handler, path):
                self.record(handler)
                self._send(handler, error)
            else:
                super().answer(handler)
        elif path == "/api/agent-harnesses":  # the client requests it once a day for its user agent
            self._send(handler, Response(200, {"standardEnvVars": [], "harnesses": {}}))
        elif path.startswith("/storage/") and handler.command in ("GET", "HEAD"):
            content = self.storage[path.rsplit("/", 1)[1]]
            self.files[handler.path] = ServedFile(content, f'"{sha256(content)}"', None)
            super().answer(handler)
        else:
            body = _read_body(handler)
            twist = self.record(handler)
            if twist.hold is not None:
                self.release.wait()
            self._send(
                handler,
                Response(twist.status) if twist.status else self._route(handler, path, body),
            )

    def _prepare_file(self, handler: BaseHTTPRequestHandler, path: str) -> Response | None:
        """Let `Server` serve the file of a /resolve/ path, or return another response to send."""
        self.files.pop(handler.path, None)
        match = re.fullmatch(rf"/{REPO}/resolve/(?P<rest>.+)", path)
        repo = self.repos.get(match["repo"]) if match else None
        readable = repo and (not repo.private or self._token(handler) in self.tokens)
        if match is None or repo is None or not readable:
            return Response(401, None, NOT_FOUND)
        revisions = [*repo.branches, *repo.commits]
        revision = next((name for name in revisions if match["rest"].startswith(f"{name}/")), None)
        if revision is None:
            return _revision_not_found("")
        commit = repo.find_commit(revision)
        assert commit
        file = match["rest"].removeprefix(f"{revision}/")
        content = repo.commits[commit].get(file)
        if content is None:
            return Response(404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if file.endswith(".safetensors"):
            headers = {
                "X-Repo-Commit": commit,
                "Location": f"{self.storage_url}/storage/{sha256(content)}",
                "X-Linked-ETag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
            }
            return Response(302, None, headers)
        self.files[handler.path] = ServedFile(
            content, f'"{_git_hash(content)}"', None, {"X-Repo-Commit": commit}
        )
        return None

    def _route(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> Response:
        """Respond to a request other than a download."""
        token = self._token(handler)
        if path.startswith("/storage/"):
            if sha256(body) != path.rsplit("/", 1)[1]:
                return Response(400, {"error": "content does not match its oid"})
            self.storage[sha256(body)] = body
            return Response()
        if token is not None and token not in self.tokens:
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return Response(401, {"error": "Invalid credentials"}, headers)
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return Response(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        repo_path = path.removeprefix("/api/models").replace(".git/info/", "/")
        match = re.fullmatch(rf"/{REPO}/?(?P<verb>\w*)(?:/(?P<rest>.+))?", repo_path)
        repo = self.repos.get(match["repo"]) if match else None
        if match is None or repo is None or (repo.private and token is None):
            return Response(401, None, NOT_FOUND)
        namespace = match["repo"].split("/")[0]
        if handler.command == "POST" and namespace not in self.tokens.get(token or "", ()):
            headers = {"X-Error-Message": "you need write access"}
            return Response(403, {"error": "Forbidden"}, headers)
        return self._route_repo(match["repo"], repo, match["verb"], match["rest"], body)

    def _route_repo(self, name: str, repo: Repo, verb: str, revision: str, body: bytes) -> Response:
        """Respond to an authorised request about a repository."""
        if verb == "branch":
            status = 409 if revision in repo.branches else 200
            repo.branches.setdefault(revision, repo.branches["main"])
            return Response(status)
        if verb == "lfs":
            objects = [self._offer_upload(item) for item in json.loads(body)["objects"]]
            return Response(200, {"transfer": "basic", "objects": objects})
        commit = repo.find_commit(revision or "main")
        if commit is None:
            return _revision_not_found(revision)
        files = repo.commits[commit]
        content: Any
        match verb:
            case "tree":
                content = [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(data),
                        "oid": _hash_content(path, data),
                    }
                    for path, data in files.items()
                ]
            case "preupload":
                items = json.loads(body)["files"]
                content = {"files": [_choose_mode(item["path"], files) for item in items]}
            case "commit":
                lines = [json.loads(line) for line in body.splitlines()]
                return self._commit(name, repo, revision, lines)
            case "" | "revision":
                siblings = [{"rfilename": path} for path in files]
                content = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings}
            case _:
                return Response(404)
        return Response(200, content)

    def _create(self, options: dict[str, Any], token: str | None) -> Response:
        """Create a repository, unless it exists or the token does not permit it."""
        organization = options["organization"]
        name = f"{organization}/{options['name']}"
        if token is None:
            return Response(401, {"error": "Invalid username or password."})
        if organization not in self.tokens[token]:
            return Response(403, {"error": f"no rights to create a model under {organization}"})
        status = 409 if name in self.repos else 200
        private = options.get("visibility") == "private" or bool(options.get("private"))
        self.repos.setdefault(name, Repo(private))
        return Response(status, {"url": f"{self.url}/{name}", "name": name})

    def _offer_upload(self, item: dict[str, Any]) -> dict[str, Any]:
        """Answer an item of an LFS batch request, with an upload URL if the file is missing."""
        if item["oid"] in self.storage:
            return item
        href = f"{self.storage_url}/storage/{item['oid']}"
        return {**item, "actions": {"upload": {"href": href}}}

    def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> Response:
        """Apply the operations of a commit request."""
        files = dict(repo.commits[repo.branches[branch]])
        for value, key in ((line["value"], line["key"]) for line in lines):
            match key:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.storage:
                        return Response(400, {"error": f"{value['path']} was not uploaded"})
                    files[value["path"]] = self.storage[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.commit(branch, files)
        url = f"{self.url}/{name}/commit/{commit}"
        return Response(200, {"commitUrl": url, "commitOid": commit, "success": True})

    @staticmethod
    def _token(handler: BaseHTTPRequestHandler) -> str | None:
        """Return the bearer token of a request."""
        value = handler.headers.get("Authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, response: Response) -> None:
        body = b"" if response.content is None else json.dumps(response.content).encode()
        handler.send_response(response.status)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        for name, value in {**headers, **response.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


def _revision_not_found(revision: str) -> Response:
    headers = {
        "X-Error-Code": "RevisionNotFound",
        "X-Error-Message": f"Invalid rev id: {revision}",
    }
    return Response(404, None, headers)


def _choose_mode(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return how the client must upload a file: inline or by LFS."""
    oid = _hash_content(name, files[name]) if name in files else None
    return {
        "path": name,
        "uploadMode": "lfs" if name.endswith(".safetensors") else "regular",
        "shouldIgnore": False,
        "oid": oid,
    }


def _hash_content(name: str, content: bytes) -> str:
    """Return the object id of a file: by LFS for weights, by git otherwise."""
    return sha256(content) if name.endswith(".safetensors") else _git_hash(content)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Read the body of a request, by Content-Length or in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body
