"""The explorer of a published model is pushed to a Hub on loopback as a Space, and nobody's Space is overwritten."""

import runpy

import pytest
import yaml
from hub_server import Fault

from diffvit_timm import __version__

SPACE = "result = spaces.push_space(models, space)"
MODEL = "hf-hub:me/pets"


@pytest.fixture(autouse=True)
def gradio_version(ask):
    """As if Gradio 6.31.0 were installed, whose version stands in the settings of the Space."""
    ask("import importlib.metadata as m; m.saved, m.version = m.version, lambda name: '6.31.0'")
    yield
    ask("import importlib.metadata as m; m.version = m.saved")


@pytest.fixture
def published(hub, ask, run_folder):
    assert ask("result = publish.push_run(Path(run), 'pets')", run=str(run_folder)) == f"{hub.url}/me/pets"
    hub.seen.clear()


def files_of(hub, name="spaces/me/look"):
    return {path: content.decode() for path, content in hub.repos[name][-1][1].items()}


@pytest.mark.parametrize("space", ["me/look", "look"])
def test_the_space_has_an_app_its_requirements_and_its_settings(hub, ask, published, space):
    assert ask(SPACE, models=[MODEL], space=space) == f"{hub.url}/spaces/me/look"
    files = files_of(hub)
    assert set(files) == {"app.py", "requirements.txt", "README.md"}
    assert files["requirements.txt"] == f"diffvit_timm[app]=={__version__}\n"
    _, header, text = files["README.md"].split("---\n", 2)
    assert yaml.safe_load(header) == {
        "title": "Attention of pets", "sdk": "gradio", "sdk_version": "6.31.0", "python_version": "3.12",
        "app_file": "app.py", "models": ["me/pets"],
    }  # fmt: skip
    assert "diffvit explore hf-hub:me/pets" in text
    assert len(hub.repos["spaces/me/look"]) == 2  # the empty one, and one commit


def test_the_app_serves_the_model_on_the_port_of_a_space(hub, ask, published, tmp_path, monkeypatch):
    ask(SPACE, models=[MODEL], space="look")
    calls = []
    monkeypatch.setattr("diffvit_timm.app.serving.serve", lambda names, **settings: calls.append((names, settings)))
    (tmp_path / "app.py").write_text(files_of(hub)["app.py"])
    runpy.run_path(str(tmp_path / "app.py"))
    assert calls == [([MODEL], {"host": "0.0.0.0", "port": 7860})]


def test_a_space_that_is_ours_is_replaced_and_an_empty_one_is_filled(hub, ask, published, run_folder):
    hub.repos["spaces/me/look"] = [("0" * 40, {"README.md": b"---\nsdk: gradio\n---\n"})]
    ask("result = publish.push_run(Path(run), 'other')", run=str(run_folder))
    ask(SPACE, models=[MODEL], space="look")
    assert "'hf-hub:me/pets'" in files_of(hub)["app.py"]
    ask(SPACE, models=[MODEL, "hf-hub:me/other"], space="look")
    assert "['hf-hub:me/pets', 'hf-hub:me/other']" in files_of(hub)["app.py"]
    assert "This page shows where me/pets and me/other look on" in files_of(hub)["README.md"]


@pytest.mark.parametrize("name", ["app.py", "index.html", "Dockerfile"])
def test_a_space_with_other_content_is_not_overwritten(hub, ask, published, name):
    hub.repos["spaces/me/look"] = [("0" * 40, {name: b"print('my own app')\n", "README.md": b""})]
    error = ask(SPACE, models=[MODEL], space="look")
    assert error == (
        f"InputError: `space=look` exists, and is not an explorer of diffvit (it has {name}): choose another name"
    )
    assert files_of(hub) == {name: "print('my own app')\n", "README.md": ""}
    assert not [path for method, path in hub.seen if method == "POST"]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["runs/pets"], "`models=runs/pets` is not on the Hub, so a Space cannot load it: push it first"),
        ([MODEL, "vit_tiny_patch16_224"], "`models=vit_tiny_patch16_224` is not on the Hub"),
        (["hf-hub:me/nothing"], "`models=hf-hub:me/nothing` cannot be found on the Hub: it does not exist"),
        (["hf-hub:me/empty"], "`models=hf-hub:me/empty` has no config.json and no model.safetensors in its root"),
    ],
)
def test_a_model_that_is_not_on_the_hub_is_refused_before_anything_is_sent(hub, ask, published, models, message):
    hub.repos["me/empty"] = [("1" * 40, {"README.md": b""})]
    assert ask(SPACE, models=models, space="look").startswith(f"InputError: {message}")
    assert "spaces/me/look" not in hub.repos
    assert not [path for method, path in hub.seen if method == "POST"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("a b", "it is not a valid repository name"),
        ("them/look", "the token may not write to it (HTTP 403: You don't have the rights"),
    ],
)
def test_a_space_that_cannot_be_written_is_one_line(hub, ask, published, space, message):
    error = ask(SPACE, models=[MODEL], space=space)
    assert error.startswith(f"InputError: `space={space}` cannot be pushed to: {message}")


def test_a_push_after_an_error_of_the_hub_goes_on_where_it_failed(hub, ask, published):
    hub.faults = [Fault("POST", "/api/spaces/me/look/commit", status=403)]
    assert "cannot be pushed to" in ask(SPACE, models=[MODEL], space="look")
    assert files_of(hub) == {}
    hub.faults = [Fault("POST", "/api/spaces/me/look/commit", status=503)]
    assert ask(SPACE, models=[MODEL], space="look") == f"{hub.url}/spaces/me/look"
    assert "app.py" in files_of(hub)


@pytest.mark.parametrize("private", [False, True])
def test_a_new_space_is_public_or_private_as_requested(hub, ask, published, private):
    ask("spaces.push_space(models, 'look', private)", models=[MODEL], private=private)
    assert hub.private["spaces/me/look"] == private
