"""The explorer in a headless browser, from the command to the pictures."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no browser: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"),
]

# The command, which reports every connection and every look-up of a name outside this machine.
GUARDED = """
import socket, sys
def guard(function, place):
    def call(*args, **kwargs):
        host = str(args[place][0] if isinstance(args[place], tuple) else args[place])
        if host not in ("127.0.0.1", "localhost", "::1", "None") and not host.startswith("/"):
            print("OUTSIDE", host, file=sys.stderr, flush=True)
        return function(*args, **kwargs)
    return call
socket.getaddrinfo = guard(socket.getaddrinfo, 0)
socket.socket.connect = guard(socket.socket.connect, 1)
from diffvit_timm.cli import main
main(["explore", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    """The command with two networks: its URL, its process, its log, and the folder of its temporary files."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    temporary, log = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("log") / "log.txt"
    command = [sys.executable, "-c", GUARDED, folders["first"], folders["second"], "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        yield f"http://127.0.0.1:{port}", process, log, temporary
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(server):
    """The page in a browser; `page.hosts` collects the hosts of all its requests, `page.errors` those of its script."""
    url, process, log, _ = server
    while f"The explorer is at {url}" not in log.read_text():
        assert process.poll() is None, log.read_text()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.hosts, page.errors = set(), []
        page.on("request", lambda request: page.hosts.add(request.url.split("/")[2 if "://" in request.url else 0]))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()


@pytest.fixture
def opened(page, photo):
    """The page with the photograph."""
    page.reload()
    page.set_input_files("#file input[type=file]", str(photo))
    playwright.expect(page.locator("#maps figure")).to_have_count(8)
    return page


def says(page, text):
    playwright.expect(page.locator("#message")).to_contain_text(text)


def click(page, x, y):
    box = page.locator("#photo .photo").bounding_box()
    page.locator("#photo .photo").click(position={"x": x * box["width"], "y": y * box["height"]})


def heat(page):
    return page.locator("#maps .heat img").first.get_attribute("src")


def test_an_image_shows_the_predictions_and_the_maps_of_both_networks(opened):
    playwright.expect(opened.locator("#predictions h3")).to_have_text(["first", "second"])
    playwright.expect(opened.locator("#maps h3")).to_have_text(
        ["first, differential attention, version 2", "second, plain attention"]
    )
    playwright.expect(opened.locator("#layers tr.chosen th")).to_have_text("1")  # the last layer of both
    says(opened, "photo.png. Query of the maps: the class token.")


def test_a_click_a_key_and_another_layer_change_the_maps(opened):
    maps = [heat(opened)]
    click(opened, 0.55, 0.55)
    says(opened, "the patch in row 3, column 3.")
    maps.append(heat(opened))
    opened.locator("#photo .photo").press("ArrowLeft")
    says(opened, "the patch in row 3, column 2.")
    opened.locator("#photo .photo").press("ArrowUp")
    says(opened, "the patch in row 2, column 2.")
    maps.append(heat(opened))
    opened.locator("#layer input[type=number]").fill("0")
    says(opened, "the patch in row 2, column 2, layer 0, mean over the heads.")
    playwright.expect(opened.locator("#layers tr.chosen th")).to_have_text("0")
    maps.append(heat(opened))
    opened.locator("#output").press("Enter")
    says(opened, "Query of the maps: the class token.")
    playwright.expect(opened.locator("#photo .mark")).to_be_hidden()
    maps.append(heat(opened))
    opened.locator("#layer input[type=number]").fill("2")
    playwright.expect(opened.locator("#maps")).to_contain_text("This network has no layer 2: its last layer is 1.")
    assert len(set(maps)) == 5


def test_a_bad_file_is_a_message_in_the_page_and_a_good_one_follows(opened, photo, server):
    bad = photo.with_name("bad.png")
    bad.write_text("no image")
    opened.set_input_files("#file input[type=file]", str(bad))
    says(opened, "This image cannot be shown: bad.png does not decode (no format that Pillow reads)")
    playwright.expect(opened.locator("#maps")).to_be_hidden()
    opened.set_input_files("#file input[type=file]", str(photo))
    playwright.expect(opened.locator("#maps figure")).to_have_count(8)
    assert "Traceback" not in server[2].read_text()


def test_the_picture_and_the_numbers_are_downloaded(opened, tmp_path):
    opened.locator("#make").click()
    links = opened.locator("#files a[download]")
    playwright.expect(links).to_have_count(2)
    for number, suffix in enumerate((".png", ".npz")):
        with opened.expect_download() as download:
            links.nth(number).click()
        download.value.save_as(tmp_path / f"file{suffix}")
        assert download.value.suggested_filename.endswith(suffix)
    assert "second map1" in np.load(tmp_path / "file.npz")
    assert (tmp_path / "file.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_screen(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.set_viewport_size({"width": 390, "height": 844})


def test_nothing_leaves_the_machine_and_the_images_are_deleted_at_the_end(page, server):
    url, process, log, temporary = server
    assert page.hosts == {url.removeprefix("http://")}
    assert not page.errors
    assert re.search(r"default-src 'self'", page.request.get(url).headers["content-security-policy"])
    assert list(temporary.glob("diffvit-explore-*"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert not list(temporary.glob("diffvit-explore-*"))
    assert "OUTSIDE" not in log.read_text()
    assert "Traceback" not in log.read_text()
