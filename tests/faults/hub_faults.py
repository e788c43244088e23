"""Every way in which a Hub misbehaves at every request of a check, a push and a pull, for tests/campaign.py.

The process must have been started with HF_ENDPOINT=http://127.0.0.1:PORT and HF_TOKEN=hub_server.TOKEN.
"""

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import timm
from hub_server import Fault, Hub

from diffvit_timm.hub import connection
from diffvit_timm.hub.publishing import check_repository, pull_run, push_run
from diffvit_timm.models.pretrained import save_pretrained

LIMIT = 1.0  # seconds of a call; a trial may take twice as long
REQUESTS = {
    "check": [("GET", "/whoami"), ("POST", "/repos/create")],
    "push": [
        ("GET", "/api/models/[^/]+/[^/]+$"), ("POST", "/preupload/"), ("POST", "/batch"), ("PUT", "/objects/"),
        ("POST", "/commit/"), ("GET", "/revision/"), ("POST", "/validate-yaml"),
    ],
    "pull": [
        ("GET", "/api/models/"), ("HEAD", "/resolve/"), ("GET", "/resolve/.*config.json"),
        ("GET", "/resolve/.*safetensors"),
    ],
}  # fmt: skip
HOW = (
    "silent", "lost", "silent_body", "trickle_headers", "trickle", "cut", "cut_body", "short_body", "corrupt_body"
)  # fmt: skip
STATUSES = (
    300, 304, 400, 401, 402, 403, 404, 408, 409, 410, 412, 413, 416, 418, 422, 423, 425, 429, 451, 500, 501, 502, 503,
    504, 505, 507, 508, 511, 520, 521, 522, 523, 524, 526, 529
)  # fmt: skip
BODIES = (b"<html>login</html>", b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b"7", b"a\nb\x1b[2J" * 999)


def _cases() -> list[tuple[str, Fault]]:
    """Return an operation and a fault for every case."""
    cases = []
    for operation, requests in REQUESTS.items():
        for method, path in requests:
            faults = [Fault(method, path, how, times=times) for how in HOW for times in (1, None)]
            faults += [Fault(method, path, status=status, times=None) for status in STATUSES]
            faults += [
                Fault(method, path, status=status, body=body, times=None) for body in BODIES for status in (200, 400)
            ]
            cases += [(operation, fault) for fault in faults]
    return cases


def hub_faults(root: Path, port: int, count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield trials: an operation with a fault ends in time, with its right result or with one error."""
    root.mkdir(exist_ok=True)
    run = root / "run"
    shape = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    save_pretrained(timm.create_model("diffvit_tiny_patch16", **shape), run, ["cat", "dog", "owl"])
    cases = _cases()
    for number, (operation, fault) in enumerate(rng.sample(cases, min(count, len(cases)))):

        def trial(operation=operation, fault=fault, folder=root / str(number)) -> None:
            huggingface_hub.constants.HF_HUB_OFFLINE = False
            connection.FIRST_WAIT, connection.READ_TIMEOUT, connection.MIN_SPEED = 0.01, 0.2, 10**12
            hub = Hub(port)
            hub.pause = 0.02
            threading.Thread(target=hub.serve_forever, daemon=True).start()
            push_run(run, "me/pets")  # also a warm-up: the first push loads more code than later ones
            connection.TIME_LIMIT = LIMIT
            hub.faults = [fault]
            start = time.monotonic()
            try:
                _operate(operation, run, folder, hub)
            finally:
                assert time.monotonic() - start < 2 * LIMIT, "it went beyond its limit"
                shutil.rmtree(folder, ignore_errors=True)

        yield f"{operation}, {fault}"[:300], trial


def _operate(operation: str, run: Path, folder: Path, hub: Hub) -> None:
    """Check, push or pull, and require that what is on the other side is what was sent."""
    weights = (run / "model.safetensors").read_bytes()
    if operation == "check":
        assert check_repository("me/pets") == "me/pets"
    elif operation == "push":
        push_run(run, "me/new")
        assert hub.repos["me/new"][-1][1]["model.safetensors"] == weights
    else:
        pull_run("me/pets", folder)
        assert (folder / "best" / "model.safetensors").read_bytes() == weights
