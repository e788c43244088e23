"""A fake Hub on loopback: the HTTP API that huggingface_hub calls, with repositories in memory and planned failures."""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_user"


class Hub(ThreadingHTTPServer):
    """The repositories and the planned failures.

    Attributes:
        repos: commits of each repository, (oid, {path: bytes}), the newest last.
        private: whether each repository was created as private.
        failures: (method, pattern of the path, status); each fails one request. Status 0 cuts the connection.
        seen: (method, path) of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.failures: list[tuple[str, str, int]] = []
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """Print nothing about a connection that was cut on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, body: object = None, headers: dict | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fails(self, path: str) -> bool:
        with self.server.lock:
            found = next((f for f in self.server.failures if f[0] == self.command and re.search(f[1], path)), None)
            if found:
                self.server.failures.remove(found)
        if found and found[2] == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif found:
            self._answer(found[2], {"error": "planned by the test"})
        return bool(found)

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, path))
        if self._fails(path):
            return
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.startswith("/objects/"):
            self._object(path.removeprefix("/objects/"), body)
        elif self.command in ("GET", "HEAD") and "/resolve/" in path:
            self._resolve(path)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._api(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _api(self, path: str, body: bytes) -> None:
        if path == "/api/whoami-v2":
            self._answer(200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization'] or 'me'}/{request['name']}"
            if name.startswith("them/"):
                self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
                return
            exists = name in self.server.repos
            self.server.repos.setdefault(name, [("0" * 40, {})])
            self.server.private.setdefault(name, request.get("private") or request.get("visibility") == "private")
            self._answer(409 if exists else 200, {"url": f"{self.server.url}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith(("safetensors", "png")) else "regular" for f in files}
            answer = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            self._answer(200, {"files": answer})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = []
            for request in json.loads(body)["objects"]:
                exists = request["oid"] in self.server.objects
                actions = {"upload": {"href": f"{self.server.url}/objects/{request['oid']}"}}
                objects.append({**request, **({} if exists else {"actions": actions})})
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(match[1], body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self._info(match[1], "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            found = self._at(match[1], match[2])
            files = found[1] if found else {}
            self._answer(200, [{"type": "file", "path": p, "size": len(d), "oid": _sha1(d)} for p, d in files.items()])
        else:
            self._answer(404, {"error": f"{self.command} {path} is not known here"})

    def _object(self, oid: str, body: bytes) -> None:
        if self.command != "PUT" or hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "the content does not have the announced hash"})
            return
        self.server.objects[oid] = body
        self._answer(200)

    def _commit(self, repo: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(self.server.repos[repo][-1][1])
        for value in (line["value"] for line in lines if line["key"] == "file"):
            files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            files[value["path"]] = self.server.objects[value["oid"]]
        for value in (line["value"] for line in lines if line["key"] == "deletedFile"):
            del files[value["path"]]
        oid = _sha1(repr(sorted(files.items())).encode())
        self.server.repos[repo].append((oid, files))
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.server.repos.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)

    def _info(self, repo: str, revision: str) -> None:
        if repo not in self.server.repos:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif found := self._at(repo, revision):
            siblings = [{"rfilename": path, "size": len(data)} for path, data in found[1].items()]
            self._answer(200, {"id": repo, "sha": found[0], "siblings": siblings, "private": False, "tags": []})
        else:
            self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})

    def _resolve(self, path: str) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision, name = match.groups()
        found = self._at(repo, revision)
        if found is None:
            code = "RepoNotFound" if repo not in self.server.repos else "RevisionNotFound"
            self._answer(404, {"error": "not found"}, {"X-Error-Code": code})
        elif name not in found[1]:
            self._answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
        else:
            data = found[1][name]
            self._answer(200, data, {"X-Repo-Commit": found[0], "ETag": f'"{_sha1(data)}"'})


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
