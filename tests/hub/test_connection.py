"""Every call to the Hub ends within its time limit, and an error says what happened, what the Hub said, and the fix."""

import email.utils
import re
import threading
import time
import types

import pytest
from hub_server import Fault
from huggingface_hub import get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from diffvit_timm.hub import connection
from diffvit_timm.hub.connection import HubCalls, HubError

# Run an operation with an empty cache and short limits. The result is its error, the seconds that it took, and the
# threads for which Python waits at exit: those that are no daemons, and every thread of a pool.
LIMITED = """
import shutil, threading, time
shutil.rmtree(os.environ["HF_HUB_CACHE"], ignore_errors=True)
before = connection.READ_TIMEOUT, connection.TIME_LIMIT, connection.MIN_SPEED
connection.READ_TIMEOUT, connection.TIME_LIMIT, connection.MIN_SPEED = 0.1, 0.5, 10**12
start = time.monotonic()
try:
    error = None
    {operation}
except ValueError as raised:
    error = f"{{type(raised).__name__}}: {{raised}}"
finally:
    connection.READ_TIMEOUT, connection.TIME_LIMIT, connection.MIN_SPEED = before
result = error, time.monotonic() - start, sorted(
    thread.name for thread in threading.enumerate() if not thread.daemon or thread.name.startswith("ThreadPoolExecutor")
)
"""
CHECK = LIMITED.format(operation="publish.check_repository('me/pets')")
PUSH = LIMITED.format(operation="publish.push_run(Path(run), 'me/pets')")
PULL = LIMITED.format(operation="publish.pull_run('me/pets', Path(out))")


def assert_ended(answer, message):
    error, seconds, threads = answer
    assert error is not None
    assert error.startswith(message), error
    assert "\n" not in error
    assert seconds < 1.0
    assert threads == ["MainThread"]


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [("GET", "/whoami", "silent"), ("GET", "/whoami", "trickle"), ("POST", "/repos/create", "trickle_headers")],
)
def test_a_check_ends_with_a_hub_that_does_not_finish(hub, ask, method, path, how):
    hub.faults = [Fault(method, path, how, times=None)]
    assert_ended(ask(CHECK), "InputError: `push_to_hub=me/pets` cannot be used: the Hub ")


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("GET", "/api/models/", "silent"), ("POST", "/preupload/", "trickle"), ("POST", "/batch", "silent_body"),
        ("PUT", "/objects/", "silent"), ("PUT", "/objects/", "trickle_headers"), ("POST", "/commit/", "lost"),
        ("POST", "/commit/", "trickle"), ("GET", "/revision/", "silent_body"),
    ],
)  # fmt: skip
def test_a_push_ends_with_a_hub_that_does_not_finish(hub, ask, run_folder, method, path, how):
    hub.faults = [Fault(method, path, how, times=None)]
    answer = ask(PUSH, run=str(run_folder))
    assert_ended(answer, "PushError: `repo=me/pets` cannot be pushed to: the Hub ")
    assert answer[0].endswith(f"; the run in {run_folder} is complete and can be pushed again")


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("GET", "/api/models/", "silent"), ("HEAD", "/resolve/", "silent"), ("GET", "/resolve/", "silent_body"),
        ("GET", "/resolve/", "trickle"),
    ],
)  # fmt: skip
def test_a_pull_ends_with_a_hub_that_does_not_finish(hub, ask, run_folder, tmp_path, method, path, how):
    ask("publish.push_run(Path(run), 'me/pets')", run=str(run_folder))
    hub.faults = [Fault(method, path, how, times=None)]
    answer = ask(PULL, out=str(tmp_path / "out"))
    assert_ended(answer, "InputError: `repo=me/pets` cannot be pulled: the Hub ")
    assert not (tmp_path / "out").exists()


def answer_of(status, said=None, kind=HfHubHTTPError, **headers):
    """The error of huggingface_hub for an answer."""
    response = types.SimpleNamespace(status_code=status, headers=headers, request=None)
    return kind(f"{status} of the server", response=response, server_message=said)


def in_100_seconds():
    """A date, as Retry-After may have it."""
    return email.utils.formatdate(time.time() + 100, usegmt=True)


@pytest.fixture
def attempts(monkeypatch):
    """Function: error -> number of attempts of a call that raises it, and the final error as text."""
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.0)

    def run(error, verb="write to"):
        count = 0

        def call():
            nonlocal count
            count += 1
            raise error

        with pytest.raises(HubError) as raised:
            HubCalls(verb).run(call)
        return count, str(raised.value)

    return run


@pytest.mark.parametrize(
    "status", [408, 409, 412, 423, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529, 599]
)
def test_a_temporary_status_is_retried(attempts, status):
    assert attempts(answer_of(status))[0] == 4


@pytest.mark.parametrize(
    "status", [400, 401, 402, 403, 404, 410, 411, 413, 418, 422, 451, 501, 505, 507, 508, 511, 526]
)
def test_a_permanent_status_is_not_retried(attempts, status):
    count, error = attempts(answer_of(status))
    assert count == 1
    assert f"(HTTP {status}" in error
    assert "check the network" not in error


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (400, "no name", "the Hub rejects the request as invalid (HTTP 400: no name): correct what it names"),
        (403, None, "the token may not read it (HTTP 403: Forbidden): create a token"),
        (404, "no", "it does not exist, or the token may not read it (HTTP 404: no): check the name"),
        (413, None, "a file is larger than the Hub accepts (HTTP 413: "),
        (451, None, "the Hub may not offer it for legal reasons (HTTP 451: "),
        (507, "10 GB", "the storage of the account is full (HTTP 507: 10 GB): delete files"),
        (503, None, "the Hub has an error of its own (HTTP 503: Service Unavailable): wait some minutes"),
        (524, None, "the Hub has an error of its own (HTTP 524): wait some minutes"),
        (423, None, "the Hub is not ready for it (HTTP 423: Locked): wait some minutes"),
        (501, None, "the Hub refuses it (HTTP 501: Not Implemented): check HF_ENDPOINT, or update huggingface_hub"),
    ],
)  # fmt: skip
def test_an_error_is_the_meaning_of_the_answer_what_the_hub_says_and_the_fix(attempts, status, said, message):
    assert attempts(answer_of(status, said), "read")[1].startswith(message)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, RepositoryNotFoundError, "it does not exist, or the token may not read it (HTTP 401: Unauthorized)"),
        (403, GatedRepoError, "access must be granted by its authors (HTTP 403: Forbidden): ask for it on the page"),
        (404, RevisionNotFoundError, "it does not have this revision: check `revision`"),
    ],
)
def test_a_repository_that_is_missing_gated_or_has_no_such_revision_is_named_so(attempts, status, kind, message):
    assert attempts(answer_of(status, kind=kind))[1].startswith(message)


def test_what_the_hub_says_is_one_line_without_control_characters(attempts):
    said = "not\nyet\x1b[2J `now`\u202e" + 1000 * "x"
    _, error = attempts(answer_of(400, said))
    assert "not yet\\x1b[2J 'now'\\u202exxx" in error
    assert len(error) < 450


def test_the_answer_behind_another_error_decides(attempts):
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = answer_of(507)
    assert attempts(error) == (1, attempts(answer_of(507))[1])


@pytest.mark.parametrize(
    ("error", "count", "message"),
    [
        (ConnectionResetError("gone"), 4, "the Hub cannot be reached or does not answer (ConnectionResetError: gone)"),
        (
            OSError("Consistency check failed: file should be of size 9"),
            4,
            "the Hub cannot be reached or does not answer",
        ),
        (
            PermissionError(13, "no"),
            1,
            "a file cannot be read or written (PermissionError: [Errno 13] no): check its permissions and the free ",
        ),
        (
            RuntimeError("no"),
            1,
            "the answer does not come from the Hub (RuntimeError: no): check the network, its login",
        ),
        (KeyError("id"), 1, "the answer does not come from the Hub (KeyError: 'id')"),
        (OfflineModeIsEnabled("no"), 1, "HF_HUB_OFFLINE is set: unset it"),
        (HFValidationError("`a b`"), 1, "it is not a valid repository name ('a b'): pass USER/NAME"),
    ],
)
def test_an_error_without_an_answer_has_its_reason(attempts, error, count, message):
    found, text = attempts(error)
    assert found == count
    assert text.startswith(message)


def test_every_further_attempt_is_announced(attempts, capsys):
    attempts(answer_of(503, "busy"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "the Hub has an error of its own (HTTP 503: busy); attempt 2 of 4 in 0 s"
    assert [line.partition("; ")[2] for line in lines] == [f"attempt {number} of 4 in 0 s" for number in (2, 3, 4)]


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "100"},
        {"retry-after": in_100_seconds},
        {"ratelimit": '"api";r=0;t=100'},
    ],
)
def test_the_next_attempt_is_when_the_hub_asks_for_it(attempts, capsys, monkeypatch, headers):
    headers = {name: value() if callable(value) else value for name, value in headers.items()}
    waits = []
    clock = types.SimpleNamespace(sleep=waits.append, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(connection, "time", clock)  # not time.sleep, which other threads call, too
    attempts(answer_of(429, **headers))
    assert waits == pytest.approx([100, 100, 100], abs=2)
    monkeypatch.setattr(connection, "TIME_LIMIT", 50.0)
    count, error = attempts(answer_of(429, **headers))
    assert count == 1
    assert re.search(r"wait some minutes; the next attempt would be in \d\d+ s, after the time limit of 50 s$", error)


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e9", "\u00b2", "Thu, 99 Foo 2026"])
def test_a_strange_wait_of_the_hub_is_ignored(attempts, value):
    assert attempts(answer_of(503, **{"retry-after": value}))[0] == 4


def test_a_call_that_never_returns_is_left_behind_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(connection, "TIME_LIMIT", 0.05)
    release = threading.Event()
    with pytest.raises(HubError, match=r"^the Hub did not finish within 0 s: check the network$"):
        HubCalls("read").run(lambda: release.wait(10))
    release.set()


def test_the_time_limit_grows_with_the_files():
    calls = HubCalls("write to", 10_000_000)
    assert calls.limit == 300 + 200
    calls.allow(50_000)
    assert calls.limit == 501
    calls.allow(10**30)
    assert calls.limit == 501 + 86_400


def test_the_timeout_of_the_client_is_set_for_the_call_only():
    before = get_session().timeout
    assert HubCalls("read").run(lambda: get_session().timeout.read) == 60
    assert get_session().timeout == before
