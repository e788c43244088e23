"""Model cards: whatever names a run has, its card is valid Markdown and YAML, and says what is true."""

import ast
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from diffvit_timm.hub.licences import licence_fields
from diffvit_timm.hub.markdown import code_block, code_span, escaped
from diffvit_timm.hub.model_card import model_card
from diffvit_timm.hub.redaction import redacted_records

FILES = ["README.md", "run/attention/epoch 1 (best).png", "run/training.png"]


def change(run, name, **entries):
    """Change entries of a record of a run."""
    path = run / name
    record = yaml.safe_load(path.read_text())
    path.write_text(json.dumps({**record, **entries}))


def card_of(run):
    text = model_card(run, redacted_records(run), "me/pets", FILES)
    return text, ModelCard(text).data


def code_of(text, language):
    return re.search(rf"^(`{{3,}}){language}\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)[2]


def test_names_are_shown_as_they_are():
    assert escaped("a|b*c_d`e<f>[g](h)\\&$#:@~") == r"a\|b\*c\_d\`e\<f\>\[g\](h)\\\&\$\#\:\@\~"
    assert escaped("two\nlines\x1b[1m\u202e") == r"two\\nlines\\x1b\[1m\\u202e"
    assert escaped("oxford-iiit-pet v1.0 (Größe, 猫)") == "oxford-iiit-pet v1.0 (Größe, 猫)"
    assert code_span("a`b\n") == r"`a'b\n`"
    assert code_block("a\n```\nb\n", "sh") == "````sh\na\n```\nb\n````"


def test_names_of_classes_and_datasets_cannot_format_the_card(run_folder):
    evil = "x|y\n\n# Buy <script>alert(1)</script> [here](http://evil.org) <!-- `"
    change(run_folder, "result.json", test_confusions=[[evil, "dog", 9]], test_split=evil)
    change(run_folder, "config.yaml", dataset=f"/data/{evil}", model_kwargs=["a=```", "b=`"])
    text, data = card_of(run_folder)
    assert "\n# Buy" not in text
    prose = text.replace(code_of(text, "yaml"), "").partition("\n---\n")[2]
    assert not re.search(r"(?<!\\)<(script|!--)", prose)
    assert not re.search(r"(?<!\\)\[here", prose)
    assert all(line.count("|") - line.count("\\|") == 3 for line in text.splitlines() if line.startswith("|"))
    assert data.datasets is None


def test_the_options_are_yaml_and_the_command_is_one_line(run_folder):
    options = {
        "dataset": "/home/alice/yes: no", "model": "m", "pretrained": False, "teacher": None, "img_size": [96, 96],
        "model_kwargs": ["norm='```'", "x=#1"], "output": "/home/alice/out", "precision": "no",
    }  # fmt: skip
    (run_folder / "config.yaml").write_text(yaml.safe_dump(options))
    change(run_folder, "environment.json", command="train.py 'two\nlines' '````' --output /home/alice/out")
    text, _ = card_of(run_folder)
    shown = yaml.safe_load(code_of(text, "yaml"))
    assert shown == {**{k: v for k, v in options.items() if k != "output"}, "dataset": "yes: no"}
    assert code_of(text, "sh") == "train.py 'two\\nlines' '````' --output out"
    assert "alice" not in text


def test_a_local_folder_is_not_declared_and_no_path_is_shown(run_folder):
    change(run_folder, "config.yaml", dataset="data/pets", model="/home/alice/nets/first")
    change(run_folder, "environment.json", command="train.py data/pets /home/alice/nets/first", dataset_is_folder=True)
    text, data = card_of(run_folder)
    assert data.datasets is None
    assert data.base_model is None
    assert {result.dataset_type for result in data.eval_results} == {"folder"}
    assert {result.dataset_name for result in data.eval_results} == {"pets"}
    assert "| | pets |" in text
    assert "alice" not in text
    assert "data/pets" not in text


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ({"model": "hf-hub:alice/net@v1.2"}, "alice/net"),
        ({"model": "hf-hub:alice/net"}, "alice/net"),
        ({"model": "hf-hub:alice/net", "pretrained": False}, None),
        ({"model": "local-dir:/home/alice/net"}, None),
        ({"model": "runs/first"}, None),
        ({"model": "hf-hub:not a name"}, None),
        ({"model": "deit_tiny_patch16_224"}, "timm/deit_tiny_patch16_224.fb_in1k"),
        ({"model": "diffvit2_tiny_patch16.deit_in1k"}, "timm/deit_tiny_patch16_224.fb_in1k"),
        (
            {"model": "diffvit", "model_kwargs": ["base=vit_small_patch16_dinov3.lvd1689m"]},
            "timm/vit_small_patch16_dinov3.lvd1689m",
        ),
    ],
)
def test_the_base_model_is_a_repository_without_its_revision(run_folder, options, base):
    change(run_folder, "config.yaml", **options)
    text, data = card_of(run_folder)
    assert data.base_model == base
    assert (f"https://huggingface.co/{base})" in text) == (base is not None)


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("apple-amlr", {"license": "apple-amlr"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("nvidia open\nmodel license", {"license": "other", "license_name": "nvidia-open-model-license"}),
        ("other", {"license": "other", "license_name": "other"}),
        (None, {"license": "unknown"}),
        ("", {"license": "unknown"}),
        ("\n", {"license": "unknown"}),
    ],
)
def test_a_licence_is_in_the_words_of_the_hub(licence, fields):
    assert licence_fields(licence) == fields


@pytest.mark.parametrize(
    ("pretrained", "licence", "shown"),
    [
        (True, "dinov3-license", ("other", "dinov3-license")), (True, "cc-by-nc-4.0", ("cc-by-nc-4.0", None)),
        (True, None, ("unknown", None)), (False, "cc-by-nc-4.0", ("apache-2.0", None)),
    ],
)  # fmt: skip
def test_pretrained_weights_keep_their_licence(run_folder, pretrained, licence, shown):
    path = run_folder / "best" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"].pop("license", None)
    config["pretrained_cfg"] |= {"license": licence} if licence else {}
    path.write_text(json.dumps(config))
    change(run_folder, "config.yaml", pretrained=pretrained)
    _, data = card_of(run_folder)
    assert (data.license, data.get("license_name")) == shown


@pytest.mark.parametrize("name", ["pets", "timm/oxford-iiit-pet"])
def test_the_licence_of_the_data_is_known_by_the_short_name_too(run_folder, name):
    change(run_folder, "config.yaml", dataset=name)
    text, data = card_of(run_folder)
    assert "The licence of the dataset is CC BY-SA 4.0." in text
    assert data.datasets == ["timm/oxford-iiit-pet"]


def test_an_untrusted_config_puts_no_code_into_the_example(run_folder):
    path = run_folder / "best" / "config.json"
    config = {**json.loads(path.read_text()), "architecture": "diffvit_x\nimport os; os.system('rm')  # `"}
    path.write_text(json.dumps(config))
    text, _ = card_of(run_folder)
    imports = [node for node in ast.parse(code_of(text, "python")).body if isinstance(node, ast.Import)]
    assert [node.names[0].name for node in imports] == ["diffvit_timm", "timm"]
    path.write_text(json.dumps({**config, "num_classes": "3)\nimport os"}))
    with pytest.raises(ValueError, match="invalid literal"):
        card_of(run_folder)


def test_a_picture_whose_name_has_spaces_and_brackets_is_linked(run_folder):
    text, _ = card_of(run_folder)
    assert "![attention](run/attention/epoch%201%20%28best%29.png)" in text


def test_the_card_says_that_lora_was_used_and_its_rank(run_folder):
    assert "LoRA" not in card_of(run_folder)[0]
    change(run_folder, "config.yaml", lora=8)
    sentence = (
        "Its blocks were fine-tuned with [LoRA](https://arxiv.org/abs/2106.09685) of rank 8, which is merged into"
    )
    assert sentence in card_of(run_folder)[0]
    change(run_folder, "config.yaml", lora="8 [here](evil)")
    assert r"of rank 8 \[here\]" in card_of(run_folder)[0]


def test_a_result_without_its_options_has_a_card(run_folder):
    (run_folder / "config.yaml").unlink()
    text, data = card_of(run_folder)
    assert "90.00% (95 % interval" in text
    assert data.datasets is None


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (
            dict(class_imbalance=18.0, class_balance="none"),
            "18.0 times as many training images as the smallest. The most",
        ),
        (dict(class_imbalance=18.0, class_balance="sampler"), "The training drew every class equally often."),
        (
            dict(class_imbalance=1.0, class_balance="loss"),
            "weighted the loss of each class by the inverse of its size.",
        ),
        (
            dict(restarts=[24, 40], updates=60),
            "the schedule of the learning rate started anew after update 24, 40 of 60.",
        ),
    ],
)
def test_unequal_classes_and_a_longer_training_are_said(run_folder, entries, sentence):
    assert sentence not in card_of(run_folder)[0]
    change(run_folder, "result.json", **entries)
    assert sentence in card_of(run_folder)[0]


def test_the_table_has_the_calibration_error_of_a_classifier(run_folder):
    row = "| expected calibration error (15 bins) | 0.0421 |"
    assert row in card_of(run_folder)[0]
    change(run_folder, "result.json", test_calibration_error=None)
    assert "calibration" not in card_of(run_folder)[0]


def test_classes_of_nearly_equal_size_and_those_of_a_stream_are_not_mentioned(run_folder):
    for ratio in (1.4, None):
        change(run_folder, "result.json", class_imbalance=ratio, class_balance="none", restarts=[])
        assert "as many training images" not in card_of(run_folder)[0]
