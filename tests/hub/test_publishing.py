"""Runs go to a Hub that speaks HTTP on loopback, and come back; what goes wrong there loses nothing."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
import yaml
from hub_server import TOKEN, Hub
from huggingface_hub import ModelCard
from PIL import Image

from diffvit_timm.models.pretrained import save_pretrained

# A process whose Hub is ours from its first import on: HF_ENDPOINT is read once.
WORKER = """
import json, os, sys
answers, sys.stdout = sys.stdout, sys.stderr
import timm, torch, diffvit_timm
from pathlib import Path
from diffvit_timm.hub import publishing as publish
from diffvit_timm.__main__ import main
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train
publish.FIRST_WAIT = 0.01
for line in sys.stdin:
    names = {**globals(), "result": None}
    try:
        exec(json.loads(line), names)
        answer = {"result": names["result"]}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    hub, home = Hub(), tmp_path_factory.mktemp("home")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
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
def hub(worker):
    """The Hub, empty."""
    server = worker[0]
    for thing in (server.repos, server.private, server.objects, server.failures, server.seen):
        thing.clear()
    return server


@pytest.fixture
def ask(worker):
    """Function: code -> what it leaves in `result`, or its error as text."""

    def run(code, **names):
        given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        worker[1].stdin.write(json.dumps(given + code) + "\n")
        worker[1].stdin.flush()
        answer = json.loads(worker[1].stdout.readline())
        return answer.get("error", answer.get("result"))

    return run


PUSH = "result = publish.push_run(Path(run), repo)"


@pytest.fixture
def run_folder(tmp_path, tiny_model):
    """A finished run, as a training leaves it."""
    run = tmp_path / "runs" / "pets"
    save_pretrained(tiny_model(attn="diff_v2"), run / "best", ["cat", "dog", "owl"])
    result = {
        "test_accuracy": 0.9, "test_interval_95": [0.85, 0.94], "test_mean_per_class": 0.88, "test_loss": 0.31,
        "test_images": 150, "test_split": "test",
        "test_confusions": [["cat", "dog", 9], ["owl", "cat", 2]], "seed": 3, "attn": "diff_v2",
        "conversion": {"method": "mirror", "images": 128, "agreement": 1.0, "kl": None}, "lambda": [0.4, 0.6],
        "negative_mass": [0.1, 0.2], "seconds": 600.0,
    }  # fmt: skip
    config = {"dataset": "timm/oxford-iiit-pet", "model": "diffvit2_tiny_patch16.deit_in1k", "pretrained": True,
              "lr": 0.1, "test_share": 0.0, "output": "/somewhere/private"}  # fmt: skip
    environment = {"command": "finetune_pets.py --lr 0.1", "packages": {"torch": "2.15"}, "threads": 2, "gpus": []}
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    Image.new("RGB", (4, 4)).save(run / "training.png")
    (run / "attention").mkdir()
    Image.new("RGB", (4, 4)).save(run / "attention" / "the-best-weights.png")
    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_pushed_whole_and_pulled_the_same(hub, ask, run_folder, tmp_path):
    assert ask(PUSH, run=str(run_folder), repo="pets") == f"{hub.url}/me/pets"
    files = hub.repos["me/pets"][-1][1]
    logs = {
        f"run/{name}" for name in ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "training.png")
    }
    assert set(files) == {"README.md", "config.json", "model.safetensors", "run/attention/the-best-weights.png"} | logs
    assert ask("publish.pull_run(repo, Path(out))", repo="me/pets", out=str(tmp_path / "back")) is None
    assert contents(tmp_path / "back") == contents(run_folder)


def test_a_run_is_pulled_into_an_empty_folder_and_what_lies_beside_it_stays(hub, ask, run_folder, tmp_path):
    ask(PUSH, run=str(run_folder), repo="pets")
    for name in ("back", "back.old", "back.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "back.old" / "precious.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    code = "os.chdir(out); result = publish.pull_run(repo, Path('.')); os.chdir('/')"
    assert ask(code, repo="me/pets", out=str(tmp_path / "back")) is None
    assert contents(tmp_path / "back") == contents(run_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "back.old" / "precious.txt").read_text() == "mine"


def test_pictures_of_data_whose_licence_forbids_them_stay_here(hub, ask, run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    (run_folder / "config.yaml").write_text(yaml.safe_dump({**config, "dataset": "1aurent/BACH"}))
    ask(PUSH, run=str(run_folder), repo="me/cells")
    files = hub.repos["me/cells"][-1][1]
    assert not [path for path in files if "attention" in path]
    assert b"attention/" not in files["README.md"]


@pytest.mark.parametrize("private", [False, True])
def test_a_repository_is_made_as_it_was_asked_for(hub, ask, run_folder, private):
    ask("publish.push_run(Path(run), 'me/secret', private)", run=str(run_folder), private=private)
    assert hub.private == {"me/secret": private}


@pytest.mark.parametrize(
    "settings",
    [
        {"attn": attn, "pos_embed": pos_embed, "img_size": [24, 16], "num_classes": 5}
        for attn, pos_embed in (("diff", "learn"), ("diff_v2", "sincos"), ("plain", "none"), ("diff", "learn_2d"))
    ]
    + [{"head_norm": True, "lambda_init": "schedule"}, {"lambda_init": 0.3, "branch_dims": [10, 6], "in_chans": 1}],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_model_comes_back_bit_equal_by_its_name(hub, ask, tiny_model, tmp_path, settings):
    model = tiny_model(**settings).eval()
    save_pretrained(model, tmp_path / "net")
    ask(PUSH, run=str(tmp_path / "net"), repo="me/net")
    code = """
model = timm.create_model("hf-hub:me/net", pretrained=True).eval()
x = torch.load(images)
torch.save({"state": model.state_dict(), "logits": model(x).detach()}, out)
"""
    x = torch.randn(2, model.in_chans, *model.patch_embed.img_size)
    torch.save(x, tmp_path / "images.pt")
    assert ask(code, images=str(tmp_path / "images.pt"), out=str(tmp_path / "out.pt")) is None
    loaded = torch.load(tmp_path / "out.pt")
    assert loaded["state"].keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded["state"][name]) for name, value in model.state_dict().items())
    assert torch.equal(loaded["logits"], model(x))


def test_every_variant_comes_back_bit_equal_by_its_name(hub, ask, tmp_path):
    code = """
model = timm.create_model(f"hf-hub:me/{name}", pretrained=True)
torch.save(model.state_dict(), out)
result = type(model).__name__, model.attn, model.num_classes, model.patch_embed.img_size
"""
    names = timm.list_models("diffvit*")
    assert len(names) >= 25
    for number, name in enumerate(names):
        attn = {"attn": "plain"} if number % 3 == 0 else {}
        pos_embed = ("learn", "sincos", "learn_2d", "none")[number % 4]
        patch = timm.create_model(name, depth=1, embed_dim=64, num_heads=4, img_size=64).patch_embed.patch_size[0]
        size = (2 * patch, 3 * patch)
        model = timm.create_model(
            name, depth=1, embed_dim=64, num_heads=4, img_size=size, num_classes=7, pos_embed=pos_embed, **attn
        )
        save_pretrained(model, tmp_path / name)
        ask(PUSH, run=str(tmp_path / name), repo=f"me/{name}")
        found = ask(code, name=name, out=str(tmp_path / "out.pt"))
        assert found == ["DiffVisionTransformer", model.attn, 7, list(size)], name
        loaded = torch.load(tmp_path / "out.pt")
        assert loaded.keys() == model.state_dict().keys()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items()), name


def test_the_card_tells_what_it_is_how_good_and_how_sure(hub, ask, run_folder):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    text = hub.repos["me/pets"][-1][1]["README.md"].decode()
    card = ModelCard(text)
    assert card.data.base_model == "timm/deit_tiny_patch16_224.fb_in1k"
    assert card.data.datasets == ["timm/oxford-iiit-pet"]
    assert card.data.library_name == "timm"
    accuracy, per_class = card.data.eval_results
    assert (accuracy.metric_value, accuracy.dataset_split, per_class.metric_value) == (0.9, "test", 0.88)
    assert "95 % interval 0.8500 to 0.9400, 150 images, seed 3" in accuracy.metric_name
    assert text.index("import diffvit_timm") < text.index('timm.create_model("hf-hub:me/pets"')
    parts = (
        "`mirror`",
        "agreement 1",
        "90.00% (95 % interval 85.00% to 94.00%)",
        "cat for dog (9); owl for cat (2)",
        "finetune_pets.py --lr 0.1",
        "2 CPU threads, 10 minutes; torch 2.15",
        "lr: 0.1",
        "run/training.png",
        "run/attention/the-best-weights.png",
        "The licence of the data: CC BY-SA 4.0; of the checkpoint",
    )
    for part in parts:
        assert part in text, part
    assert "/somewhere/private" not in text


def test_what_an_earlier_run_left_goes_with_the_next_push(hub, ask, run_folder):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    assert "run/metrics.jsonl" in hub.repos["me/pets"][-1][1]
    (run_folder / "metrics.jsonl").unlink()
    ask(PUSH, run=str(run_folder), repo="me/pets")
    _, files = hub.repos["me/pets"][-1]
    assert "run/metrics.jsonl" not in files
    assert {"run/result.json", "config.json", "model.safetensors", "README.md"} <= set(files)


def test_a_second_push_brings_new_numbers_and_keeps_what_was_written_by_hand(hub, ask, run_folder):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    _, files = hub.repos["me/pets"][-1]
    by_hand = (
        files["README.md"] + b"\n<!-- What stands below this line stays when the run is pushed again. -->\nMy cat.\n"
    )
    hub.repos["me/pets"].append(("1" * 40, {**files, "README.md": by_hand}))
    result = json.loads((run_folder / "result.json").read_text())
    (run_folder / "result.json").write_text(json.dumps({**result, "test_accuracy": 0.95}))
    ask(PUSH, run=str(run_folder), repo="me/pets")
    text = hub.repos["me/pets"][-1][1]["README.md"].decode()
    assert "95.00% (95 % interval" in text
    assert "90.00% (95 % interval" not in text
    assert text.endswith("again. -->\nMy cat.\n")
    ask(PUSH, run=str(run_folder), repo="me/pets")
    assert hub.repos["me/pets"][-1][1]["README.md"].decode() == text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/commit/", 409),
        ("POST", "/commit/", 429),
        ("POST", "/commit/", 500),
        ("POST", "/commit/", 0),
        ("POST", "/preupload/", 503),
        ("POST", "/objects/batch", 500),
        ("PUT", "^/objects/", 500),
        ("PUT", "^/objects/", 0),
    ],
)
def test_a_hub_that_stumbles_once_gets_the_run_all_the_same(hub, ask, run_folder, method, path, status):
    hub.failures = [(method, path, status)]
    assert ask(PUSH, run=str(run_folder), repo="me/pets") == f"{hub.url}/me/pets"
    assert not hub.failures
    files = hub.repos["me/pets"][-1][1]
    assert files["model.safetensors"] == (run_folder / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("failures", "repo", "message"),
    [
        ([("POST", "/commit/", 500)] * 9, "me/pets", "HTTP 500"),
        ([("POST", "/commit/", 0)] * 9, "me/pets", "check the network"),
        ([("POST", "/commit/", 413)], "me/pets", "HTTP 413"),
        ([("GET", "/whoami", 401)], "me/pets", "run `hf auth login`, or set HF_TOKEN"),
        ([], "them/pets", "the token may not write there"),
        ([], "a/b/c", "no name of a repository"),
    ],
)
def test_a_push_that_fails_says_why_and_how_to_try_again_and_loses_nothing(
    hub, ask, run_folder, failures, repo, message
):
    before = contents(run_folder)
    hub.failures = list(failures)
    error = ask(PUSH, run=str(run_folder), repo=repo)
    assert error.startswith(f"InputError: REPO {repo}: ")
    assert message in error
    assert error.endswith(f"python -m diffvit_timm push {run_folder} {repo}")
    assert "\n" not in error
    assert contents(run_folder) == before
    hub.failures = []
    if message.startswith(("HTTP 5", "check")):
        assert ask(PUSH, run=str(run_folder), repo=repo).startswith(hub.url)


@pytest.mark.parametrize("token", ["hf_of_somebody", None])
def test_without_a_token_that_is_known_nothing_begins(hub, ask, image_folder, tmp_path, token):
    config = f"TrainConfig({str(image_folder)!r}, 'diffvit_nano', output={str(tmp_path / 'run')!r}, push_to_hub='pets')"
    change = f"os.environ['HF_TOKEN'] = {token!r}" if token else "del os.environ['HF_TOKEN']"
    code = f"{change}\ntry:\n    train({config}, 'r')\nfinally:\n    os.environ['HF_TOKEN'] = {TOKEN!r}"
    error = ask(code)
    assert error.startswith("InputError: --push-to-hub pets: the Hub knows no such token, or there is none here")
    assert not list(tmp_path.iterdir())
    assert not hub.repos


TRAIN = """
shape = ("img_size=16", "patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")
config = TrainConfig(data, "diffvit_tiny_patch16", pretrained=False, model_kwargs=shape, epochs=1, batch_size=8,
                     workers=0, augment="none", output=out, push_to_hub="me/animals", hub_private=True)
result = train(config, "recipe")
"""


def test_a_training_pushes_its_result_with_a_picture_of_what_it_attends_to(hub, ask, image_folder, tmp_path):
    result = ask(TRAIN, data=str(image_folder), out=str(tmp_path / "run"))
    files = hub.repos["me/animals"][-1][1]
    assert hub.private["me/animals"]
    assert json.loads(files["run/result.json"])["test_accuracy"] == result["test_accuracy"]
    assert files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert "run/attention/the-best-weights.png" in files
    text = files["README.md"].decode()
    assert "trained from random weights" in text
    assert "datasets:" not in text.split("---")[1]  # a folder is no dataset of the Hub
    assert hub.seen[0][1] == "/api/whoami-v2"


def test_a_training_whose_push_fails_keeps_its_run(hub, ask, image_folder, tmp_path):
    hub.failures = [("POST", "/commit/", 413)]
    error = ask(TRAIN, data=str(image_folder), out=str(tmp_path / "run"))
    assert "python -m diffvit_timm push" in error
    assert error.endswith("me/animals --private")
    assert (tmp_path / "run" / "result.json").exists()


def test_push_and_pull_are_commands(hub, ask, run_folder, tmp_path):
    assert ask(f"main(['push', {str(run_folder)!r}, 'me/pets', '--private'])") is None
    assert hub.private == {"me/pets": True}
    assert ask(f"main(['pull', 'me/pets', {str(tmp_path / 'out')!r}])") is None
    loaded = timm.create_model(f"local-dir:{tmp_path}/out/best", pretrained=True)
    assert loaded.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    revision = hub.repos["me/pets"][-1][0]
    assert ask("publish.pull_run('me/pets', Path(out), revision)", out=str(tmp_path / "at"), revision=revision) is None
    assert contents(tmp_path / "at") == contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("me/nothing", None, "there is no such repository"),
        ("me/empty", None, "holds no weights that were pushed from here: no config.json and no model.safetensors"),
        ("me/empty", "v9", "no such revision"),
    ],
)
def test_what_cannot_be_pulled_leaves_no_folder(hub, ask, tmp_path, repo, revision, message):
    hub.repos["me/empty"] = [("0" * 40, {"README.md": b"empty"})]
    error = ask("publish.pull_run(repo, Path(out), revision)", repo=repo, revision=revision, out=str(tmp_path / "out"))
    assert error.startswith(f"InputError: REPO {repo}")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_not_pushed(hub, ask, tmp_path):
    error = ask(PUSH, run=str(tmp_path), repo="me/pets")
    assert (
        error
        == f"InputError: RUN {tmp_path} is no finished run: {tmp_path} has no config.json and no model.safetensors"
    )
    assert not hub.seen
    assert Path(tmp_path).is_dir()
