"""Calls to the Hub with a time limit, retries and one-line errors."""

import email.utils
import http
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..console import log0, printable

__all__ = ["HubCalls", "HubError", "hub_api"]

READ_TIMEOUT = 60.0  # seconds in which a connection must be made, and in which some byte of an answer must come
TIME_LIMIT = 300.0  # seconds for a push, a pull or a check with all its attempts, on top of the time for its files
MIN_SPEED = 50_000  # bytes per second at which files must be sent or received
MAX_TRANSFER_TIME = 86_400.0  # seconds for the files of one push or pull, whatever sizes the Hub lists
ATTEMPTS = 4  # of a call, on top of huggingface_hub's own retries
THREAD = "call to the Hub"  # name of the thread of a call
FIRST_WAIT = 2.0  # seconds before the next attempt, doubled every time; longer if the Hub asks for it

# Statuses to retry: a timeout, another commit in between (409, 412), a lock, or too many requests.
RETRYABLE = (408, 409, 412, 423, 425, 429)
# 5xx statuses not to retry; others count as 500 (RFC 9110).
PERMANENT = (501, 505, 506, 507, 508, 510, 511, 526)

# Status code -> what it means, and the fix.
MEANINGS = {
    400: ("the Hub rejects the request as invalid", "correct what it names"),
    401: ("there is no token, or the Hub does not accept it", "run 'hf auth login' or set HF_TOKEN"),
    402: ("the Hub asks for a payment", "look at the plan and the limits of the account"),
    403: ("the token may not {verb} it", "create a token that may, or choose another repository"),
    404: ("it does not exist, or the token may not read it", "check the name, or run 'hf auth login'"),
    407: ("the proxy asks for a login", "check HTTPS_PROXY"),
    410: ("it no longer exists", "check the name"),
    413: ("a file is larger than the Hub accepts", "leave out large pictures, or save a smaller model"),
    422: ("the Hub rejects the request as invalid", "correct what it names"),
    429: ("the Hub gets too many requests from this account or address", "wait some minutes"),
    451: ("the Hub may not offer it for legal reasons", "choose another repository"),
    507: ("the storage of the account is full", "delete files on the Hub, or choose another account"),
    511: ("the network asks for a login", "open a page in a browser and log in to the network"),
}

T = TypeVar("T")


def hub_api() -> HfApi:
    """Return the client of the Hub's API, which names this package in its requests."""
    return HfApi(library_name="diffvit_timm")


class HubError(Exception):
    """A call that failed for good: the reason and the fix, in one line."""


class HubCalls:
    """Calls to the Hub that share one time limit.

    The limit is TIME_LIMIT seconds plus the time for the files at MIN_SPEED bytes per second; that time is at most
    MAX_TRANSFER_TIME.

    No server can hold them longer, whether it is silent or sends one byte at a time: each call runs in a daemon thread,
    which is left behind when the time is up and does not keep the process alive.

    Args:
        verb: what the calls do with the repository, for an error about permissions: 'write to' or 'read'.
        size: bytes that are sent or received.
    """

    def __init__(self, verb: str, size: int = 0) -> None:
        self.verb = verb
        self.limit = TIME_LIMIT
        self.start = time.monotonic()
        self.allow(size)

    def allow(self, size: int) -> None:
        """Extend the time limit by the time for more bytes."""
        self.limit += min(max(size, 0) / MIN_SPEED, MAX_TRANSFER_TIME)

    def run(self, call: Callable[[], T]) -> T:
        """Run a call until it succeeds, fails for good, or the time is up. Each further attempt is announced by a line.

        Args:
            call: function of requests by huggingface_hub, which can be run again. It must not start a thread pool,
                because Python waits for pool threads at exit.

        Raises:
            HubError: it failed for good, or the time is up.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(call)
            except HubError:
                raise
            except _TimeIsUpError as error:
                raise HubError(f"the Hub did not finish within {self.limit:.0f} s: check the network") from error
            except Exception as error:
                wait = _retry_delay(error, attempt)
                if wait is None or attempt == ATTEMPTS:
                    raise HubError(_describe(error, self.verb)) from error
                if wait > self._seconds_left():
                    late = f"the next attempt would be in {wait:.0f} s, after the time limit of {self.limit:.0f} s"
                    raise HubError(f"{_describe(error, self.verb)}; {late}") from error
                log0(f"{_describe(error, self.verb, fix=False)}; attempt {attempt + 1} of {ATTEMPTS} in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _seconds_left(self) -> float:
        return max(0.0, self.start + self.limit - time.monotonic())

    def _attempt(self, call: Callable[[], T]) -> T:
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put((call(), None))
            except BaseException as error:
                outcome.put((None, error))

        # huggingface_hub gives its client no timeout, except for downloads.
        client = get_session()
        before, client.timeout = client.timeout, READ_TIMEOUT
        try:
            threading.Thread(target=work, name=THREAD, daemon=True).start()
            value, error = outcome.get(timeout=self._seconds_left())
        except queue.Empty:
            raise _TimeIsUpError from None
        finally:
            client.timeout = before
        if error is not None:
            raise error
        return value


class _TimeIsUpError(Exception):
    """The time limit of a HubCalls has passed."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def _http_error(error: BaseException) -> HfHubHTTPError | None:
    """Return the answer of the Hub that an error is about, None if it is about something else."""
    answers = (one for one in _causes(error) if isinstance(one, HfHubHTTPError) and one.response is not None)
    return next(answers, None)


def _is_offline(error: BaseException) -> bool:
    return any(isinstance(one, OfflineModeIsEnabled) for one in _causes(error))


def _is_broken_connection(error: BaseException) -> bool:
    if _is_offline(error):
        return False
    # By name, so that no HTTP client is imported: httpx has a TransportError, Python and requests a ConnectionError.
    names = {kind.__name__ for one in _causes(error) for kind in type(one).__mro__}
    # huggingface_hub's error about a download of another length than announced has nothing but its text.
    return bool(names & {"TransportError", "ConnectionError"}) or "Consistency check failed" in str(error)


def _retry_delay(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt, None if a further attempt cannot succeed."""
    wait = FIRST_WAIT * 2 ** (attempt - 1)
    if (answer := _http_error(error)) is None:
        return wait if _is_broken_connection(error) else None
    status = answer.response.status_code
    if status in RETRYABLE or (status >= 500 and status not in PERMANENT):
        return max(wait, _retry_after(answer.response.headers))
    return None


def _retry_after(headers: Any) -> float:
    """Return the seconds that an answer asks to wait: in Retry-After (seconds or a date) or in the Hub's RateLimit."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value[:9])
    if limit := re.search(r";\s*r=0\s*;\s*t=(\d{1,9})", headers.get("ratelimit", "")):
        return float(limit[1])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _describe(error: BaseException, verb: str, fix: bool = True) -> str:
    """Return what happened and, if asked, how to fix it, in one line."""
    what, advice = _meaning(error, verb)
    return f"{what}: {advice}" if fix else what


def _meaning(error: BaseException, verb: str) -> tuple[str, str]:
    """Return what happened and the fix."""
    text = f"{type(error).__name__}: {_one_line(str(error))}"
    if _is_offline(error):
        return "HF_HUB_OFFLINE is set", "unset it"
    if isinstance(error, HFValidationError):
        return f"it is not a valid repository name ({_one_line(str(error))})", "pass USER/NAME"
    if isinstance(error, LocalTokenNotFoundError):
        return MEANINGS[401]
    if (answer := _http_error(error)) is not None:
        return _meaning_of_answer(answer, verb)
    if _is_broken_connection(error):
        return f"the Hub cannot be reached or does not answer ({text})", "check the network"
    if isinstance(error, OSError) and error.errno is not None:
        return (
            f"a file cannot be read or written ({text})",
            "check its permissions and the free space, or set HF_HOME to another folder",
        )
    return f"the answer does not come from the Hub ({text})", "check the network, its login page and HF_ENDPOINT"


def _meaning_of_answer(answer: HfHubHTTPError, verb: str) -> tuple[str, str]:
    """Return what an answer of the Hub means, with its own words, and the fix."""
    status = answer.response.status_code
    if isinstance(answer, RevisionNotFoundError):
        return "it does not have this revision", "check `revision`"
    if isinstance(answer, GatedRepoError):
        what, advice = "access must be granted by its authors", "ask for it on the page of the repository"
    elif isinstance(answer, RepositoryNotFoundError):  # the Hub answers 401 to users without a token
        what, advice = MEANINGS[404]
    elif status in MEANINGS:
        what, advice = MEANINGS[status]
    elif status >= 500 and status not in PERMANENT:
        what, advice = "the Hub has an error of its own", "wait some minutes"
    elif status in RETRYABLE:
        what, advice = "the Hub is not ready for it", "wait some minutes"
    else:
        what, advice = "the Hub refuses it", "check HF_ENDPOINT, or update huggingface_hub"
    said = _one_line(answer.server_message or "")
    if not said and status in [known.value for known in http.HTTPStatus]:
        said = http.HTTPStatus(status).phrase
    return f"{what.format(verb=verb)} (HTTP {status}{said and ': '}{said})", advice


def _one_line(text: str) -> str:
    return printable(" ".join(text.split())).replace("`", "'")[:300].strip(" .")
