"""diffvit explore: bad input is one line, before Gradio or a network is loaded."""

import importlib.util
import socket
import subprocess
import sys

import pytest


@pytest.fixture
def with_gradio(monkeypatch):
    """As if Gradio were installed, which these errors do not need."""
    monkeypatch.setattr("diffvit_timm.app.serving.require_gradio", lambda: None)
    monkeypatch.setattr("diffvit_timm.cli.commands.explore.require_gradio", lambda: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "MODELS must be one or two models"),
        (["a", "b", "c"], "MODELS a b c must be one or two models"),
        (["a", "--img-size", "0"], "--img-size 0 must be one positive number of pixels, or height and width"),
        (["a", "--port", "0"], "--port 0 must be from 1 to 65535"),
        (["a", "--port", "65536"], "--port 65536 must be from 1 to 65535"),
        (["a", "--host", "a..b"], "--host a..b is not an address of this machine"),
        (["a", "--host", "192.0.2.1"], "--port 7860 of 192.0.2.1 cannot be used"),
        (["a", "--device", "cuda:99"], "--device cuda:99 cannot be used: "),
        (["vit_tinyest"], "MODELS vit_tinyest is not known to timm"),
        (["a", "--private"], "--private is for a Space, and --space is not given: leave it out"),
        (["a", "--space", "me/look"], "MODELS a is not on the Hub, so a Space cannot load it: push it first"),
        (["a", "--space", "me/look", "--device", "cuda"], "--device cuda is for a page on this machine, and not for a"),
        (["diffvit_nano"], "MODELS diffvit_nano has no pretrained weights"),
    ],
)
def test_bad_input_is_one_line(refusal, with_gradio, free_port, words, message):
    has_port = {"--port", "--space", "192.0.2.1"} & {*words} or not words
    port = [] if has_port else ["--port", free_port]
    assert refusal("explore", *words, *port).startswith(message)


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_the_same_network_twice_is_one_line(refusal, with_gradio, weights, free_port):
    folder = weights("net")
    message = refusal("explore", folder, folder, "--port", free_port)
    assert message.endswith("names a model twice: give each model once")


def test_a_port_that_is_in_use_is_one_line(refusal, with_gradio):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        message = refusal("explore", "diffvit_nano", "--port", port)
    assert message.startswith(f"--port {port} of 127.0.0.1 cannot be used (Address already in use): choose another")


def test_without_gradio_one_line_names_the_extra_before_anything_loads(refusal, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    assert refusal("explore", "vit_tinyest") == "diffvit explore needs gradio: pip install 'diffvit_timm[app]'"


def test_gradio_is_not_imported_for_a_help():
    code = """
import sys
from diffvit_timm.cli import main
main(["--help"])
try:
    main(["explore", "--help"])
finally:
    assert "gradio" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
