"""A fake Hub on loopback: the HTTP API that huggingface_hub calls, with repositories in memory and planned faults.

    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    hub.faults = [Fault("POST", "/commit/", status=503), Fault("GET", "/resolve/", "trickle", times=None)]

huggingface_hub reads HF_ENDPOINT=hub.url when it is imported. `hub.clear()` brings back an empty Hub without faults,
and ends the handlers that are still silent.
"""

import base64
import dataclasses
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_user"
REPO = "(models|spaces)/([^/]+/[^/]+)"  # in the paths of the API


@dataclasses.dataclass
class Fault:
    """One way to misbehave.

    Attributes:
        method, path: the requests that it matches: HTTP method, pattern of the path.
        how: what happens to the request or to its right answer:
            'status': another status is answered, with a body and headers, and the request has no effect;
            'cut': the connection is closed without an answer, and the request has no effect;
            'silent': nothing is answered, and the request has no effect;
            'lost': the request has its effect, but nothing is answered;
            'silent_body': the headers are answered, and then nothing;
            'trickle_headers': the answer comes one byte at a time, from its first line on;
            'trickle': the headers come at once, the body one byte at a time;
            'cut_body': the connection is closed after half of the body;
            'short_body': half of the body comes as if it were the whole;
            'corrupt_body': one byte of the body is changed.
        status, body, headers: of the answer with 'status'. A body that is not bytes is sent as JSON.
        times: number of requests that it matches; None for all.
    """

    method: str
    path: str
    how: Literal[
        "status", "cut", "silent", "lost", "silent_body", "trickle_headers", "trickle", "cut_body", "short_body",
        "corrupt_body"
    ] = "status"  # fmt: skip
    status: int = 503
    body: object = dataclasses.field(default_factory=lambda: {"error": "planned by the test"})
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    times: int | None = 1


class Hub(ThreadingHTTPServer):
    """The repositories and the planned faults.

    Attributes:
        repos: commits of each repository, (oid, {path: bytes}), the newest last; a Space is spaces/USER/NAME.
        private: whether each repository was created as private.
        faults: the first that fits a request is applied to it; one that is used up is removed.
        pause: seconds between two bytes of a trickle.
        seen: (method, path) of every request.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.pause = 0.05
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.released = threading.Event()  # ends the handlers that wait
        self.is_over = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        """End the handlers that are still silent or trickle, and refuse every request until `clear`."""
        self.is_over = True
        self.released.set()

    def clear(self) -> None:
        """Forget everything, and answer again."""
        self.end()
        self.released, self.is_over = threading.Event(), False
        for thing in (self.repos, self.private, self.objects, self.faults, self.seen):
            thing.clear()

    def handle_error(self, request, client_address) -> None:
        """Print nothing about a connection that was cut on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent apart: the body would wait 40 ms for the client's receipt
    fault: Fault | None = None  # of the present request

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, body: object = None, headers: dict | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        how = self.fault.how if self.fault else "status"
        if how == "lost":
            self._wait()
            return
        if how == "corrupt_body" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif how == "short_body":
            data = data[: len(data) // 2]
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ['Planned'])[0]}"]
        lines += [f"{name}: {value}" for name, value in {"Content-Length": len(data), **(headers or {})}.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        for part in self._parts(how, head, b"" if self.command == "HEAD" else data):
            self.wfile.write(part)
            self.wfile.flush()
        self.close_connection |= how == "cut_body"

    def _parts(self, how: str, head: bytes, data: bytes) -> Iterator[bytes]:
        """Yield the bytes of an answer, in the pieces in which they are sent."""
        slow = head + data if how == "trickle_headers" else data if how == "trickle" else b""
        if how != "trickle_headers":
            yield head
        if how == "silent_body":
            self._wait()
        elif how == "cut_body":
            yield data[: len(data) // 2]
        elif not slow:
            yield data
        released = self.server.released
        for byte in slow:
            if released.wait(self.server.pause):
                self.close_connection = True
                return
            yield bytes([byte])

    def _wait(self) -> None:
        """Stay silent until the test is over."""
        self.server.released.wait()
        self.close_connection = True

    def _plan(self, path: str) -> Fault | None:
        """Return the fault that meets this request, None if it is answered rightly."""
        faults = self.server.faults
        with self.server.lock:
            for fault in [f for f in faults if f.method == self.command and re.search(f.path, path)][:1]:
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        faults.remove(fault)
                return fault
        return None

    def _has_no_effect(self, fault: Fault | None) -> bool:
        """Apply a fault that prevents the effect of the request."""
        if fault is None or fault.how not in ("status", "cut", "silent"):
            return False
        if fault.how == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault.how == "silent":
            self._wait()
        else:
            self.fault = None
            self._answer(fault.status, fault.body, fault.headers)
        return True

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.is_over:
            self.fault = None
            self._answer(410, {"error": "the test of this request is over"})
            return
        self.server.seen.append((self.command, path))
        self.fault = self._plan(path)
        if self._has_no_effect(self.fault):
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
            if request.get("type") == "space":
                name = f"spaces/{name}"
            if name.removeprefix("spaces/").startswith("them/"):
                self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
                return
            exists = name in self.server.repos
            self.server.repos.setdefault(name, [("0" * 40, {})])
            self.server.private.setdefault(name, request.get("private") or request.get("visibility") == "private")
            self._answer(409 if exists else 200, {"url": f"{self.server.url}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/(?:models|spaces)/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if _is_large(f["path"]) else "regular" for f in files}
            answer = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            self._answer(200, {"files": answer})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = []
            for request in json.loads(body)["objects"]:
                exists = request["oid"] in self.server.objects
                actions = {"upload": {"href": f"{self.server.url}/objects/{request['oid']}"}}
                objects.append({**request, **({} if exists else {"actions": actions})})
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(rf"/api/{REPO}/commit/(.+)", path):
            self._commit(_key(match), body)
        elif match := re.fullmatch(rf"/api/{REPO}/revision/(.+)", path):
            self._info(_key(match), match[3])
        elif match := re.fullmatch(rf"/api/{REPO}", path):
            self._info(_key(match), "main")
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
            siblings = [
                {"rfilename": path, "size": len(data), **_hashes(path, data)} for path, data in found[1].items()
            ]
            self._answer(
                200,
                {
                    "id": repo.removeprefix("spaces/"),
                    "sha": found[0],
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                },
            )
        else:
            self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})

    def _resolve(self, path: str) -> None:
        match = re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
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


def _key(match: re.Match) -> str:
    """Return the name of a repository in `Hub.repos`, from a match of REPO."""
    return match[2] if match[1] == "models" else f"spaces/{match[2]}"


def _is_large(path: str) -> bool:
    return path.endswith(("safetensors", "png"))


def _hashes(path: str, data: bytes) -> dict:
    """Return the hashes that the Hub lists: git's hash, and for a large file the hash of its content."""
    if not _is_large(path):
        return {"blobId": _sha1(b"blob %d\0" % len(data) + data)}
    sha256 = hashlib.sha256(data).hexdigest()
    return {"blobId": _sha1(sha256.encode()), "lfs": {"sha256": sha256, "size": len(data), "pointerSize": 134}}


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
