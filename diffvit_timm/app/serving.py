"""Serve the explorer on this machine: nothing is sent anywhere else, and the images are deleted at the end."""

import contextlib
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..console import log0
from ..errors import InputError

__all__ = ["require_address", "require_gradio", "serve", "serving"]

LARGEST_FILE = "64mb"  # of an image

# The browser itself refuses every request of the page to another host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'"
)


def require_gradio() -> None:
    """Check that Gradio is installed, without importing it.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("diffvit explore needs gradio: pip install 'diffvit_timm[app]'")


def require_address(host: str, port: int) -> None:
    """Check that a server can listen on an address.

    Args:
        host: name or address of this machine.
        port: port.

    Raises:
        InputError: the host is not one of this machine, or the port is in use.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"`host={host}` is not an address of this machine ({error}): try 127.0.0.1") from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise InputError(
                f"`port={port}` of {host} cannot be used ({error.strerror}): choose another port"
            ) from error


@contextlib.contextmanager
def serving(
    names: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "cpu",
    img_size: Sequence[int] = (),
    parameter: str = "models",
) -> Iterator[str]:
    """Context manager: serve the explorer; the images and files of its users are deleted at the end.

    Args:
        names: one or two models, in the four forms of models/pretrained.py.
        host, port: address to listen on.
        device, img_size, parameter: as in `load_networks`.

    Yields:
        URL of the page.

    Raises:
        InputError: as `require_gradio`, `require_address` and `load_networks`.
    """
    require_gradio()
    require_address(host, port)
    from .network import load_networks  # not above: a wrong address is found without torch
    from .session import Session

    networks = load_networks(names, device, img_size, parameter)
    with tempfile.TemporaryDirectory(prefix="diffvit-explore-") as folder:
        # Gradio reads them when it is imported, and when it builds a page.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        import gradio

        from .page import explorer_page
        from .style import CSS

        page = explorer_page(Session(networks), Path(folder))
        _, url, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # as an address of IPv6 stands in a URL
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=LARGEST_FILE,
            css=CSS,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            app_kwargs=dict(middleware=[_policy()]),
        )
        try:
            yield url
        finally:
            page.close(verbose=False)


def _policy() -> Any:
    """Return the middleware that adds POLICY to every answer."""
    from starlette.middleware import Middleware

    class Policy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
                await send(message)

            await self.app(scope, receive, send_with_policy)

    return Middleware(Policy)


def serve(names: Sequence[str], **settings: Any) -> None:
    """Serve the explorer until Ctrl-C or SIGTERM; the arguments and errors are those of `serving`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the images are deleted then, too
    with serving(names, **settings) as url:
        log0(f"The explorer is at {url} until you press Ctrl-C.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    log0("The explorer has ended, and its copies of the images are deleted.")
