"""Fixtures: a Hub on loopback, a process that uses it, and the folder of a finished run."""

import json
import os
import subprocess
import sys
import threading

import pytest
import yaml
from hub_server import TOKEN, Hub
from PIL import Image

from diffvit_timm.models.pretrained import save_pretrained

# A process that uses the Hub on loopback: HF_ENDPOINT is read only once, at the first import.
WORKER = """
import json, os, sys, threading
answers, sys.stdout = sys.stdout, sys.stderr
import timm, torch, diffvit_timm
from pathlib import Path
from diffvit_timm.hub import connection, publishing as publish, spaces
connection.FIRST_WAIT = 0.01
connection.get_session()  # its first use takes a part of a short limit
for line in sys.stdin:
    names = {**globals(), "result": None}
    try:
        exec(json.loads(line), names)
        answer = {"result": names["result"]}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
"""

# Wait for the threads of calls that were given up; the result lists those that do not end.
JOIN = """
calls = [thread for thread in threading.enumerate() if thread.name == connection.THREAD]
for thread in calls:
    thread.join(10)
result = [thread.name for thread in calls if thread.is_alive()]
"""


@pytest.fixture(scope="session")
def worker(tmp_path_factory):
    hub, home = Hub(), tmp_path_factory.mktemp("home")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield hub, process
    process.kill()
    process.wait()
    process.stdin.close(), process.stdout.close()
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(worker, ask):
    """The Hub, without repositories and faults."""
    worker[0].clear()
    yield worker[0]
    # A call that was given up may still be trying again: it must not reach the Hub of the next test.
    worker[0].end()
    assert ask(JOIN) == []
    worker[0].clear()


@pytest.fixture
def ask(worker):
    """Function: run code in the worker, and return its variable `result`, or its error as text."""

    def run(code, **names):
        given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        worker[1].stdin.write(json.dumps(given + code) + "\n")
        worker[1].stdin.flush()
        answer = json.loads(worker[1].stdout.readline())
        return answer.get("error", answer.get("result"))

    return run


@pytest.fixture
def run_folder(tmp_path, tiny_model):
    """A run folder, as a finished training leaves it."""
    run = tmp_path / "runs" / "pets"
    save_pretrained(tiny_model(attn="diff_v2"), run / "best", ["cat", "dog", "owl"])
    result = {
        "test_accuracy": 0.9, "test_interval_95": [0.85, 0.94], "test_mean_per_class": 0.88, "test_loss": 0.31,
        "test_calibration_error": 0.0421, "test_images": 150, "test_split": "test",
        "test_confusions": [["cat", "dog", 9], ["owl", "cat", 2]], "seed": 3, "attn": "diff_v2",
        "conversion": {"method": "mirror", "images": 128, "agreement": 1.0, "kl": None}, "lambda": [0.4, 0.6],
        "negative_mass": [0.1, 0.2], "seconds": 600.0,
    }  # fmt: skip
    config = {"dataset": "timm/oxford-iiit-pet", "model": "diffvit2_tiny_patch16.deit_in1k", "pretrained": True,
              "lr": 0.1, "test_share": 0.0, "output": "/somewhere/private"}  # fmt: skip
    environment = {"command": "finetune_pets.py --lr 0.1", "packages": {"torch": "2.15"}, "threads": 2, "gpus": []}
    (run / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (run / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for name in ("training.png", "predictions.png"):
        Image.new("RGB", (4, 4)).save(run / name)
    (run / "attention").mkdir()
    Image.new("RGB", (4, 4)).save(run / "attention" / "the-best-weights.png")
    return run
