"""Runs are pushed to a Hub on loopback and pulled back; no error of the Hub loses anything."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from hub_server import TOKEN, Fault
from huggingface_hub import ModelCard

from diffvit_timm.files import atomic_folder
from diffvit_timm.hub.model_card import model_card
from diffvit_timm.hub.redaction import redacted_records
from diffvit_timm.models.pretrained import save_pretrained

PUSH = "result = publish.push_run(Path(run), repo)"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(folder):
    """The contents of a run folder after a push and a pull."""
    files = contents(folder)
    return {**files, "config.yaml": files["config.yaml"].replace(b"/somewhere/private", b"private")}


def test_a_run_is_pushed_completely_and_pulled_unchanged(hub, ask, run_folder, tmp_path):
    assert ask(PUSH, run=str(run_folder), repo="pets") == f"{hub.url}/me/pets"
    files = hub.repos["me/pets"][-1][1]
    logs = ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "training.png", "predictions.png")
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "run/attention/the-best-weights.png",
        *(f"run/{name}" for name in logs),
    }  # fmt: skip
    assert ask("publish.pull_run(repo, Path(out))", repo="me/pets", out=str(tmp_path / "back")) is None
    assert contents(tmp_path / "back") == published(run_folder)


def test_a_run_is_pulled_into_an_empty_folder_and_its_neighbours_stay(hub, ask, run_folder, tmp_path):
    ask(PUSH, run=str(run_folder), repo="pets")
    for name in ("back", "back.old", "back.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "back.old" / "precious.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    code = "os.chdir(out); result = publish.pull_run(repo, Path('.')); os.chdir('/')"
    assert ask(code, repo="me/pets", out=str(tmp_path / "back")) is None
    assert contents(tmp_path / "back") == published(run_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "back.old" / "precious.txt").read_text() == "mine"


def test_one_repository_holds_several_runs_in_folders_and_each_is_pulled_alone(hub, ask, run_folder, tmp_path):
    code = "result = publish.push_run(Path(run), 'all', path_in_repo=path)"
    for path in ("cifar100/diff_10m", "cifar100/plain_10m"):
        assert ask(code, run=str(run_folder), path=path) == f"{hub.url}/me/all/tree/main/{path}"
    files = hub.repos["me/all"][-1][1]
    assert {path.rpartition("/run")[0] or path.rpartition("/")[0] for path in files} == {
        "cifar100/diff_10m", "cifar100/plain_10m"
    }  # fmt: skip
    pull = "result = publish.pull_run('me/all', Path(out), None, 'cifar100/diff_10m')"
    assert ask(pull, out=str(tmp_path / "back")) is None
    assert contents(tmp_path / "back") == published(run_folder)
    card = files["cifar100/diff_10m/README.md"].decode()
    assert "diffvit pull me/all OUT --path-in-repo cifar100/diff_10m" in card
    assert 'timm.create_model("local-dir:OUT/best", pretrained=True)' in card
    assert "# diff_10m\n" in card
    # A push to the root, or again to a folder, leaves the other runs as they are.
    (run_folder / "training.png").unlink()
    ask(code, run=str(run_folder), path="cifar100/plain_10m/")
    ask(PUSH, run=str(run_folder), repo="all")
    after = hub.repos["me/all"][-1][1]
    assert {path: after[path] for path in files if path.startswith("cifar100/diff_10m")} == {
        path: content for path, content in files.items() if path.startswith("cifar100/diff_10m")
    }  # fmt: skip
    assert "cifar100/plain_10m/run/training.png" not in after
    assert {"config.json", "README.md", "cifar100/plain_10m/config.json"} <= set(after)


def test_a_pull_of_the_root_of_a_repository_of_many_runs_names_their_folders(hub, ask, run_folder, tmp_path):
    ask("publish.push_run(Path(run), 'all', path_in_repo='a/b')", run=str(run_folder))
    error = ask("publish.pull_run('me/all', Path(out))", out=str(tmp_path / "back"))
    assert error == (
        "InputError: `repo=me/all` does not contain a run: it has no config.json and no model.safetensors, but runs in "
        "a/b: pass `path_in_repo`"
    )
    error = ask("publish.pull_run('me/all', Path(out), None, 'a/c')", out=str(tmp_path / "back"))
    assert "it has no a/c/config.json and no a/c/model.safetensors, but runs in a/b" in error
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("path", ["..", "a/../b", "/a", "a//b", "a\\b", "."])
def test_a_path_that_is_no_folder_in_a_repository_is_refused_before_anything_is_sent(hub, ask, run_folder, path):
    error = ask("publish.push_run(Path(run), 'all', path_in_repo=path)", run=str(run_folder), path=path)
    assert error.startswith(f"InputError: `path_in_repo={path}` is not a folder in a repository")
    assert not hub.repos


def test_the_word_hf_repository_stands_for_the_repository_of_the_environment(hub, ask, run_folder, tmp_path):
    error = ask(
        "os.environ.pop('HF_REPOSITORY', None); publish.push_run(Path(run), 'HF_REPOSITORY')", run=str(run_folder)
    )
    assert error.startswith("InputError: `repo=HF_REPOSITORY`: set HF_REPOSITORY in the environment or in .env")
    named = "os.environ['HF_REPOSITORY'] = 'me/named'\n"
    assert ask(named + PUSH, run=str(run_folder), repo="HF_REPOSITORY") == f"{hub.url}/me/named"
    assert ask(named + "result = publish.check_repository('HF_REPOSITORY')") == "me/named"
    code = "publish.pull_run('HF_REPOSITORY', Path(out)); del os.environ['HF_REPOSITORY']"
    assert ask(code, out=str(tmp_path / "back")) is None
    assert contents(tmp_path / "back") == published(run_folder)


def test_pictures_are_not_pushed_if_the_licence_of_the_data_forbids_it(hub, ask, run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    (run_folder / "config.yaml").write_text(yaml.safe_dump({**config, "dataset": "1aurent/BACH"}))
    ask(PUSH, run=str(run_folder), repo="me/cells")
    files = hub.repos["me/cells"][-1][1]
    assert not [path for path in files if "attention" in path or "predictions" in path]
    assert b"attention/" not in files["README.md"]
    assert b"predictions.png" not in files["README.md"]


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_is_public_or_private_as_requested(hub, ask, run_folder, private):
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
def test_a_pushed_model_loads_by_name_with_equal_bits(hub, ask, tiny_model, tmp_path, settings):
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


def test_every_pushed_variant_loads_by_name_with_equal_bits(hub, ask, tmp_path):
    code = """
model = timm.create_model(f"hf-hub:me/{name}", pretrained=True)
torch.save(model.state_dict(), out)
from diffvit_timm.layers.base import attention_kind
result = type(model).__name__, attention_kind(model), model.num_classes, model.patch_embed.img_size
"""
    names = timm.list_models("diffvit*", module="diffvit")
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
        is_timms = bool(attn) and pos_embed in ("learn", "none")  # a plain twin that timm itself can build
        kind = "VisionTransformer" if is_timms else "DiffVisionTransformer"
        assert found == [kind, model.attn, 7, list(size)], name
        loaded = torch.load(tmp_path / "out.pt")
        assert loaded.keys() == model.state_dict().keys()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items()), name


def test_the_card_has_the_origin_the_results_and_their_uncertainty(hub, ask, run_folder):
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
        "on 128 images: the top-1 class is the same for 100.0% of them.",
        "90.00% (95 % interval 85.00% to 94.00%)",
        "cat classified as dog (9); owl classified as cat (2)",
        "finetune_pets.py --lr 0.1",
        "2 CPU threads and took 10 minutes, with torch 2.15",
        "lr: 0.1",
        "run/training.png",
        "run/predictions.png",
        "run/attention/the-best-weights.png",
        "The licence of the dataset is CC BY-SA 4.0. The pretrained weights",
    )
    for part in parts:
        assert part in text, part
    assert "/somewhere/private" not in text


@pytest.mark.parametrize(
    ("architecture", "imports", "description"),
    [
        ("vit_tiny_patch16_224", False, "architecture is `vit_tiny_patch16_224`, which is part of timm."),
        ("diffvit_nano", True, "architecture is `diffvit_nano`."),
    ],
)
def test_the_card_of_a_plain_network_says_whether_timm_knows_its_architecture(
    tmp_path, architecture, imports, description
):
    config = {"architecture": architecture, "num_classes": 3, "model_args": {"attn": "plain"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {"input_size": [1, 28, 28]}}))
    card = model_card(tmp_path, redacted_records(tmp_path), "me/plain", [])
    assert description in card
    assert ("import diffvit_timm" in card) == imports
    assert "differential-attention" not in card
    assert 'convert("L")' in card


def test_files_of_an_earlier_run_are_deleted_with_the_next_push(hub, ask, run_folder):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    assert "run/metrics.jsonl" in hub.repos["me/pets"][-1][1]
    (run_folder / "metrics.jsonl").unlink()
    ask(PUSH, run=str(run_folder), repo="me/pets")
    _, files = hub.repos["me/pets"][-1]
    assert "run/metrics.jsonl" not in files
    assert {"run/result.json", "config.json", "model.safetensors", "README.md"} <= set(files)


def test_a_second_push_updates_the_results_and_keeps_text_that_was_added_by_hand(hub, ask, run_folder):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    _, files = hub.repos["me/pets"][-1]
    mark = b"\n<!-- Text below this line is kept when the run is pushed again. -->\n"
    assert files["README.md"].endswith(mark)
    hub.repos["me/pets"].append(("1" * 40, {**files, "README.md": files["README.md"] + b"My cat.\n"}))
    result = json.loads((run_folder / "result.json").read_text())
    (run_folder / "result.json").write_text(json.dumps({**result, "test_accuracy": 0.95}))
    ask(PUSH, run=str(run_folder), repo="me/pets")
    text = hub.repos["me/pets"][-1][1]["README.md"].decode()
    assert "95.00% (95 % interval" in text
    assert "90.00% (95 % interval" not in text
    assert text.endswith(mark.decode() + "My cat.\n")
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
def test_a_run_is_pushed_in_spite_of_one_transient_error(hub, ask, run_folder, method, path, status):
    hub.faults = [Fault(method, path, "status" if status else "cut", status)]
    assert ask(PUSH, run=str(run_folder), repo="me/pets") == f"{hub.url}/me/pets"
    assert not hub.faults
    files = hub.repos["me/pets"][-1][1]
    assert files["model.safetensors"] == (run_folder / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("failures", "repo", "message"),
    [
        ([Fault("POST", "/commit/", status=500, times=9)], "me/pets", "HTTP 500"),
        ([Fault("POST", "/commit/", "cut", times=9)], "me/pets", "check the network"),
        ([Fault("POST", "/commit/", status=413)], "me/pets", "HTTP 413"),
        ([Fault("GET", "/whoami", status=401)], "me/pets", "run 'hf auth login' or set HF_TOKEN"),
        ([], "them/pets", "the token may not write to it"),
        ([], "a/b/c", "not a valid repository name"),
    ],
)
def test_a_failed_push_names_the_reason_and_loses_nothing(hub, ask, run_folder, failures, repo, message):
    before = contents(run_folder)
    hub.faults = copy.deepcopy(failures)
    error = ask(PUSH, run=str(run_folder), repo=repo)
    assert error.startswith(f"PushError: `repo={repo}` cannot be ")
    assert message in error
    assert error.endswith(f"; the run in {run_folder} is complete and can be pushed again")
    assert "\n" not in error
    assert contents(run_folder) == before
    hub.faults = []
    if message.startswith(("HTTP 5", "check")):
        assert ask(PUSH, run=str(run_folder), repo=repo).startswith(hub.url)


IMPORTS = """
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train
"""


@pytest.mark.parametrize("token", ["hf_of_somebody", None])
def test_without_a_valid_token_no_training_starts(hub, ask, image_folder, tmp_path, token):
    options = f"{str(image_folder)!r}, 'diffvit_nano', output={str(tmp_path / 'run')!r}, push_to_hub='pets'"
    config = f"TrainConfig.from_flat({options})"
    change = f"os.environ['HF_TOKEN'] = {token!r}" if token else "del os.environ['HF_TOKEN']"
    code = f"{IMPORTS}\n{change}\ntry:\n    train({config}, 'r')\nfinally:\n    os.environ['HF_TOKEN'] = {TOKEN!r}"
    error = ask(code)
    assert error.startswith(
        "InputError: `push_to_hub=pets` cannot be used: there is no token, or the Hub does not accept it"
    )
    assert not list(tmp_path.iterdir())
    assert not hub.repos


TRAIN = f"""{IMPORTS}
shape = ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")
config = TrainConfig.from_flat(data, "diffvit_tiny_patch16", pretrained=False, img_size=(16,), model_kwargs=shape,
                               epochs=1, batch_size=8, workers=0, augment="none", output=out,
                               push_to_hub="me/animals", hub_private=True)
result = train(config, "recipe")
"""


def test_a_training_pushes_its_result_with_a_picture_of_its_attention(hub, ask, image_folder, tmp_path):
    result = ask(TRAIN, data=str(image_folder), out=str(tmp_path / "run"))
    files = hub.repos["me/animals"][-1][1]
    assert hub.private["me/animals"]
    assert json.loads(files["run/result.json"])["test_accuracy"] == result["test_accuracy"]
    assert files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert "run/attention/the-best-weights.png" in files
    folders = (str(image_folder.parent), str(tmp_path))
    assert not [path for path, data in files.items() for folder in folders if folder.encode() in data]
    text = files["README.md"].decode()
    assert "trained from random weights" in text
    assert "datasets:" not in text.split("---")[1]  # a folder is not a dataset on the Hub
    assert hub.seen[0][1] == "/api/whoami-v2"


def test_a_training_whose_push_fails_keeps_its_run(hub, ask, image_folder, tmp_path):
    hub.faults = [Fault("POST", "/commit/", status=413)]
    error = ask(TRAIN, data=str(image_folder), out=str(tmp_path / "run"))
    assert error.startswith("PushError: `push_to_hub=me/animals` cannot be pushed to: ")
    assert error.endswith(f"; the run in {tmp_path / 'run'} is complete and can be pushed again")
    assert (tmp_path / "run" / "result.json").exists()


def test_push_and_pull_are_commands(hub, ask, run_folder, tmp_path):
    command = "from diffvit_timm.cli import main; main(arguments)"
    assert ask(command, arguments=["push", str(run_folder), "me/pets", "--private"]) is None
    assert hub.private == {"me/pets": True}
    assert ask(command, arguments=["pull", "me/pets", str(tmp_path / "out")]) is None
    loaded = timm.create_model(f"local-dir:{tmp_path}/out/best", pretrained=True)
    assert loaded.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    revision = hub.repos["me/pets"][-1][0]
    assert ask("publish.pull_run('me/pets', Path(out), revision)", out=str(tmp_path / "at"), revision=revision) is None
    assert contents(tmp_path / "at") == contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("me/nothing", None, "it does not exist"),
        ("me/empty", None, "does not contain a run: it has no config.json and no model.safetensors"),
        ("me/empty", "v9", "it does not have this revision: check `revision`"),
    ],
)
def test_a_failed_pull_leaves_no_folder(hub, ask, tmp_path, repo, revision, message):
    hub.repos["me/empty"] = [("0" * 40, {"README.md": b"empty"})]
    error = ask("publish.pull_run(repo, Path(out), revision)", repo=repo, revision=revision, out=str(tmp_path / "out"))
    assert error.startswith(f"InputError: `repo={repo}` ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_only_files_that_a_push_writes_are_pulled(hub, ask, run_folder, tmp_path):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    _, files = hub.repos["me/pets"][-1]
    strange = (
        "run/best/model.safetensors", "run/best/config.json", "best/config.json", "run/setup.py", "run/config.yaml/x",
        "run/attention/deep/a.png", "run/attention/../../../a.png", "run//metrics.jsonl", "/run/result.json",
        "../config.json", "run/attention/a.png.sh", "run/attention/a\nb.png", "run/checkpoints/state.pt", "pickle.bin",
    )  # fmt: skip
    hub.repos["me/pets"].append(("2" * 40, {**files, **dict.fromkeys(strange, b"evil")}))
    hub.seen.clear()
    assert ask("publish.pull_run('me/pets', Path(out))", out=str(tmp_path / "out")) is None
    assert contents(tmp_path / "out") == published(run_folder)
    asked = {path.partition("/resolve/")[2][41:] for _, path in hub.seen if "/resolve/" in path}
    assert asked == set(files) - {"README.md"}


EMPTY_CACHE = "import shutil; shutil.rmtree(os.environ['HF_HUB_CACHE'], ignore_errors=True)\n"
PULL = EMPTY_CACHE + "result = publish.pull_run('me/pets', Path(out))"


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "run/training.png"])
@pytest.mark.parametrize("how", ["corrupt_body", "short_body", "cut_body"])
def test_a_damaged_download_is_repeated_once_and_then_refused(hub, ask, run_folder, tmp_path, path, how):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    hub.faults = [Fault("GET", f"/resolve/.*/{path}$", how)]
    assert ask(PULL, out=str(tmp_path / "first")) is None
    assert contents(tmp_path / "first") == published(run_folder)
    if how == "corrupt_body":
        hub.faults = [Fault("GET", f"/resolve/.*/{path}$", how, times=None)]
        error = ask(PULL, out=str(tmp_path / "second"))
        message = (
            f"InputError: `repo=me/pets` cannot be pulled: {path} is damaged, also after a second download: delete /"
        )
        assert error.startswith(message)
        assert error.endswith(" and try again")
        assert Path(error.split(" delete ")[1].removesuffix(" and try again")).is_file()
        assert not (tmp_path / "second").exists()


def test_a_damaged_file_in_the_cache_is_noticed(hub, ask, run_folder, tmp_path):
    ask(PUSH, run=str(run_folder), repo="me/pets")
    assert ask(PULL, out=str(tmp_path / "first")) is None
    damage = """
for path in Path(os.environ["HF_HUB_CACHE"]).rglob("snapshots/*/model.safetensors"):
    path.write_bytes(path.read_bytes()[:-1] + b"x")
result = publish.pull_run("me/pets", Path(out))
"""
    assert ask(damage, out=str(tmp_path / "second")) is None
    assert contents(tmp_path / "second") == published(run_folder)


@pytest.mark.parametrize("wrong", [{"size": 7}, {"lfs": {"sha256": "0" * 64, "size": 7, "pointerSize": 1}}])
def test_a_push_is_compared_with_what_the_hub_has_stored(hub, ask, run_folder, wrong):
    listing = {"id": "me/pets", "sha": "1" * 40, "siblings": [{"rfilename": "model.safetensors", **wrong}]}
    hub.faults = [Fault("GET", "/revision/", status=200, body=listing)]
    error = ask(PUSH, run=str(run_folder), repo="me/pets")
    assert error.startswith(
        "PushError: `repo=me/pets`: the Hub stored different content for config.json, model.safetensors, "
    )
    assert error.endswith(f"; the run in {run_folder} is complete and can be pushed again")


def test_an_answer_that_is_lost_commits_once(hub, ask, run_folder):
    hub.faults = [Fault("POST", "/commit/", "cut_body")]
    assert ask(PUSH, run=str(run_folder), repo="me/pets") == f"{hub.url}/me/pets"
    assert len({oid for oid, _ in hub.repos["me/pets"]}) == 2  # that of the empty repository, and the run


@pytest.mark.parametrize("status", [423, 425, 520, 524])
def test_a_push_survives_a_moment_of_trouble(hub, ask, run_folder, status):
    hub.faults = [Fault(*request, status=status) for request in (("GET", "/whoami"), ("POST", "/commit/"))]
    assert ask(PUSH, run=str(run_folder), repo="me/pets") == f"{hub.url}/me/pets"
    assert not hub.faults


def test_text_by_hand_is_kept_byte_by_byte_and_a_foreign_card_is_announced(hub, ask, run_folder):
    hub.repos["me/pets"] = [("0" * 40, {"README.md": b"My own page."})]
    printed = """
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()) as err:
    publish.push_run(Path(run), repo)
result = err.getvalue()
"""
    line = ask(printed, run=str(run_folder), repo="me/pets")
    commit = 40 * "0"
    assert (
        line
        == f"the README.md of me/pets is replaced; its text stays in the history of the repository (commit {commit})\n"
    )
    _, files = hub.repos["me/pets"][-1]
    text = files["README.md"].replace(b"\n", b"\r\n") + b"Gr\xf6\xdfe\r\n"
    hub.repos["me/pets"].append(("1" * 40, {**files, "README.md": text}))
    ask(PUSH, run=str(run_folder), repo="me/pets")
    assert hub.repos["me/pets"][-1][1]["README.md"].endswith(b" -->\r\nGr\xf6\xdfe\r\n")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_weights_are_not_pushed(hub, ask, run_folder, content):
    path = run_folder / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    error = ask(PUSH, run=str(run_folder), repo="me/pets")
    assert error.startswith(f"InputError: `run={run_folder}`: {path} is damaged (")
    assert not hub.seen


def test_weights_that_changed_since_they_were_saved_are_not_pushed(hub, ask, run_folder):
    shutil.copytree(run_folder / "best", run_folder / "saved")
    with atomic_folder(run_folder / "best", "best/", "") as folder:
        for path in (run_folder / "saved").iterdir():
            shutil.copy(path, folder)
    ask(PUSH, run=str(run_folder), repo="me/pets")
    assert "SHA256SUMS" not in hub.repos["me/pets"][-1][1]
    weights = bytearray((run_folder / "best" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run_folder / "best" / "model.safetensors").write_bytes(weights)
    error = ask(PUSH, run=str(run_folder), repo="me/pets")
    assert f"{run_folder}/best is not as it was saved: model.safetensors is damaged" in error
    assert len(hub.repos["me/pets"]) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [("result.json", '{"seed": 1}'), ("environment.json", '{"cpus": 1}'), ("best/config.json", "[]")],
)
def test_a_run_with_incomplete_records_is_one_line(hub, ask, run_folder, name, content):
    (run_folder / name).write_text(content)
    error = ask(PUSH, run=str(run_folder), repo="me/pets")
    assert error.startswith(
        f"InputError: `run={run_folder}`: config.json, config.yaml, result.json or environment.json is "
    )
    assert "\n" not in error
    assert not hub.seen


def test_a_folder_that_is_not_a_run_is_not_pushed(hub, ask, tmp_path):
    error = ask(PUSH, run=str(tmp_path), repo="me/pets")
    reason = f"{tmp_path} has no config.json and no model.safetensors"
    assert error == f"InputError: `run={tmp_path}` is not a finished run: {reason}"
    assert not hub.seen
    assert Path(tmp_path).is_dir()
