"""Untrusted saved models: a wrong config or broken weights are one line, in bounded time and memory."""

import json
import shutil
import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from diffvit_timm import from_vit
from diffvit_timm.console import printable
from diffvit_timm.errors import InputError
from diffvit_timm.files import atomic_folder
from diffvit_timm.models import meta_device, saved_config
from diffvit_timm.models.meta_device import build_on_meta
from diffvit_timm.models.outputs import class_names
from diffvit_timm.models.pretrained import check_convertible, check_model, load_model, save_pretrained

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def folder(tiny_model, tmp_path):
    save_pretrained(tiny_model(), tmp_path / "saved", NAMES)
    return tmp_path / "saved"


def rewrite(folder, *path, value):
    """Set an entry of the config, such as 'model_args', 'depth'."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path
    entry = config
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_an_intact_config_is_accepted_and_gives_the_class_names(folder):
    assert saved_config.check_config(folder / "config.json").names == NAMES


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture", "vit_of_2030", "names the architecture vit_of_2030, which is not known: a newer version of"),
        ("architecture", 5, "has architecture=5, which must be the name of an architecture"),
        ("architecture", "local-dir:/x", "names the architecture local-dir:/x, which is not known"),
        ("model_args", [1], r"has model_args=\[1\], which must be a dictionary"),
        ("pretrained_cfg", "x", "has pretrained_cfg='x', which must be a dictionary"),
        ("pretrained_cfg.mean", [float("nan")] * 3, r"has mean=\[nan, nan, nan\], which must be a list of numbers"),
        ("pretrained_cfg.mean", 0.5, "has mean=0.5, which must be a list of numbers"),
        ("pretrained_cfg.std", [1, 0, 1], r"has std=\[1, 0, 1\], which must be a list of numbers from 0.0001 to 10000"),
        ("pretrained_cfg.std", [-1, 1, 1], "has std="),
        ("pretrained_cfg.std", ["1", "1", "1"], "has std="),
        ("pretrained_cfg.std", [], "has std="),
        ("pretrained_cfg.input_size", [3, 10**6, 10**6], "has input_size=.*from 1 to 4096"),
        ("pretrained_cfg.input_size", [3, 0, 16], "has input_size="),
        ("pretrained_cfg.crop_pct", 1e-9, "has crop_pct=1e-09, which must be a number from 0.1 to 10"),
        ("pretrained_cfg.interpolation", "best", "has interpolation='best', which must be one of nearest, bilinear,"),
        ("pretrained_cfg.from_the_future", 1, "has the unknown entry pretrained_cfg.from_the_future: a newer version"),
        ("num_classes", -1, "has num_classes=-1, which must be a whole number from 0 to"),
        ("num_classes", 10**12, "has num_classes=1000000000000, which must be"),
        ("num_classes", "ten", "has num_classes='ten', which must be"),
        ("model_args.num_classes", 4, "has model_args.num_classes=4, which must be equal to num_classes=3"),
        ("model_args.depth", 10**9, "has depth=1000000000, which must be finite, and whole numbers at most 1,000,000 "),
        ("model_args.depth", 10**5, "has depth=100000, which must be at most 1,000"),
        ("model_args.depth", "ten", "has depth='ten', which must be a positive whole number"),
        ("model_args.depth", True, "has depth=True, which must be a positive whole number"),
        ("model_args.embed_dim", 10**6, "describes a network of .* GiB, more than the main memory"),
        ("model_args.embed_dim", 3200, "describes a network of .* parameters, and all files of the folder together"),
        ("model_args.embed_dim", 10**9, "has embed_dim=1000000000, which must be"),
        ("model_args.img_size", 5000, "has img_size=5000, which must be at most 4,096"),
        ("model_args.img_size", 0, "has img_size=0, which must be a positive whole number"),
        ("model_args.patch_size", [0, 0], r"has patch_size=\[0, 0\], which must be a positive whole number"),
        ("model_args.patch_size", [], r"has patch_size=\[\], which must be a positive whole number"),
        ("model_args.mlp_ratio", float("inf"), "has mlp_ratio=inf, which must be finite"),
        ("model_args.act_layer", 5, "TypeError"),
        ("model_args.norm_eps", "tiny", "norm_eps='tiny' must be a number between 0 and 1"),
        ("model_args.base", "local-dir:elsewhere", "has base='local-dir:elsewhere', which must be the name of an arch"),
        ("model_args.unheard_of", 1, "unexpected keyword argument 'unheard_of'"),
        ("label_names", [[1], 2, 3], r"has label_names=\[\[1\], 2, 3\], which must be a list of names, or a"),
        ("label_names", "cat", "has label_names='cat', which must be"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_one_line_before_anything_is_allocated(folder, path, value, message):
    rewrite(folder, *path.split("."), value=value)
    start = time.perf_counter()
    for use in (check_model, load_model):
        with pytest.raises(InputError, match=f"^`source={folder}` cannot be created: .*{message}") as caught:
            use(str(folder), parameter="source")
        assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"architecture": "diffv', "is not JSON"),
        (bytes(range(256)), "is not JSON"),
        ('{"architecture": "diffvit_nano"}'.encode("utf-16"), "is not JSON"),
        (b"[1, 2]", "has a list where it needs a dictionary"),
        (b"null", "has a NoneType where it needs a dictionary"),
        (b"{}", "has architecture=None, which must be the name of an architecture"),
        (b"[" * 10**5, "is nested too deeply"),
        (b'{"architecture": ' + b"1" * 10**5 + b"}", "is not JSON"),
        (b" " * (2**24 + 1), "has more than 16 MiB"),
    ],
    ids=["empty", "halved", "garbage", "utf-16", "list", "null", "empty dict", "nested", "digits", "large"],
)
def test_a_broken_config_is_one_line(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=f"^`model={folder}` cannot be created: its config.json {message}"):
        load_model(str(folder))


@pytest.mark.parametrize("how", ["missing", "empty", "halved", "garbage", "text", "other tensors", "other shapes"])
def test_broken_weights_are_one_line(folder, how):
    path = folder / "model.safetensors"
    weights, content = load_file(path), path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "other tensors":
        save_file({f"module_{name}": tensor for name, tensor in weights.items()}, path)
    elif how == "other shapes":
        save_file(
            {name: tensor.repeat_interleave(2, 0) if tensor.ndim else tensor for name, tensor in weights.items()}, path
        )
    else:
        path.write_bytes({"empty": b"", "halved": content[: len(content) // 2], "text": b"{}"}.get(how, content[::-1]))
    with pytest.raises(InputError, match=f"^`model={folder}` cannot be created: ") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_nan_or_infinite_are_refused_with_the_name_of_the_tensor(folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["blocks.1.mlp.fc1.weight"][0, :2] = value
    save_file(weights, folder / "model.safetensors")
    message = "the tensor blocks.1.mlp.fc1.weight has 2 values that are NaN or infinite: the weights are broken"
    with pytest.raises(InputError, match=f"^`model={folder}` cannot be created: {message}"):
        load_model(str(folder))


def test_a_plain_network_with_nan_weights_is_not_converted():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3)
    torch.nn.init.constant_(plain.blocks[0].norm1.bias, float("nan"))
    with pytest.raises(ValueError, match=r"the tensor blocks\.0\.norm1.bias has 48 values that are NaN"):
        from_vit(plain)


def test_large_finite_weights_are_loaded(folder):
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"][:] = 3e38  # their sum overflows
    save_file(weights, folder / "model.safetensors")
    assert load_model(str(folder)).head.bias[0] == 3e38


def test_class_names_may_be_a_dictionary_from_index_to_name(folder):
    rewrite(folder, "label_names", value={"2": "owl", "0": "cat", "1": "dog"})
    model = load_model(str(folder))
    assert class_names(model) == model.pretrained_cfg["label_names"] == NAMES


def test_a_network_with_tables_of_positions_that_are_too_large_is_refused(tmp_path, monkeypatch):
    model = timm.create_model("vit_small_patch16_rope_224", img_size=32, embed_dim=48, depth=1, num_heads=3)
    save_pretrained(model, tmp_path)
    load_model(str(tmp_path))
    monkeypatch.setattr(meta_device, "MAX_BUFFERS", 100)
    with pytest.raises(InputError, match=r"describes tables of 0\.0 GiB beside the weights: img_size is too large"):
        load_model(str(tmp_path))


def test_a_network_without_a_head_may_keep_the_class_names(tiny_model, tmp_path):
    save_pretrained(tiny_model(num_classes=0), tmp_path, NAMES)
    assert class_names(load_model(str(tmp_path))) is None


def test_class_names_of_timms_own_loading_may_be_a_dictionary_too(folder):
    rewrite(folder, "label_names", value={"2": "owl", "0": "cat", "1": "dog"})
    assert class_names(timm.create_model(f"local-dir:{folder}", pretrained=True)) == NAMES


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", None, "owl"], {"0": "cat", "1": "dog", "7": "owl"}])
def test_names_that_do_not_fit_the_classes_are_not_used_and_that_is_said(folder, names, capsys):
    rewrite(folder, "label_names", value=names)
    assert class_names(load_model(str(folder))) is None
    assert "the label_names of config.json are not used" in capsys.readouterr().err


def test_numbers_may_be_class_names_and_unusual_crops_load(folder):
    rewrite(folder, "label_names", value=[0, 1, 2])
    rewrite(folder, "pretrained_cfg", "crop_pct", value=0.4)
    rewrite(folder, "pretrained_cfg", "crop_mode", value="none")
    rewrite(folder, "pretrained_cfg", "label_offset", value=-1)
    assert class_names(load_model(str(folder))) == ["0", "1", "2"]


def test_class_names_have_no_control_characters(folder):
    rewrite(folder, "label_names", value=["\x1b[2Jcat\n", "\u202edog\ud800", "بی\u200cبی"])
    assert class_names(load_model(str(folder))) == ["\\x1b[2Jcat\\n", "\\u202edog\\ud800", "بی\u200cبی"]
    assert printable("a\tb\x00c") == "a\\tb\\x00c"


def test_an_error_shows_untrusted_text_without_control_characters(folder):
    rewrite(folder, "model_args", "\x1b]0;evil\x07", value=float("nan"))
    with pytest.raises(InputError) as caught:
        load_model(str(folder))
    assert str(caught.value).isprintable()


def test_weights_that_changed_since_they_were_saved_are_refused(folder, tmp_path):
    with atomic_folder(tmp_path / "best", "best/", "") as best:
        for path in folder.iterdir():
            shutil.copy(path, best)
    load_model(str(tmp_path))  # a run folder
    weights = bytearray((tmp_path / "best" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "best" / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        InputError, match=r"safetensors is damaged: .*, if you changed its files yourself, delete .*SHA256SUMS"
    ):
        load_model(str(tmp_path))
    (tmp_path / "best" / "SHA256SUMS").unlink()
    load_model(str(tmp_path))


def test_a_network_of_too_many_modules_is_refused_while_it_is_built():
    start = time.perf_counter()
    with pytest.raises(ValueError, match="the network has more than 20,000 modules and parameters"):
        build_on_meta("vit_tiny_patch16_224", depth=10**5)
    assert time.perf_counter() - start < 60


def test_a_network_on_the_meta_device_has_the_shapes_of_the_network_and_no_memory(folder):
    assert {name: tensor.shape for name, tensor in build_on_meta(f"local-dir:{folder}").state_dict().items()} == {
        name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert all(parameter.is_meta for parameter in build_on_meta(f"local-dir:{folder}").parameters())


def test_every_pretrained_config_of_timm_is_accepted(folder):
    for name in timm.list_pretrained():
        settings = timm.models.get_pretrained_cfg(name).to_dict(remove_source=True)
        saved_config._check_settings(json.loads(json.dumps(settings)))


def test_an_architecture_that_cannot_be_converted_is_refused_before_its_weights_are_downloaded(monkeypatch):
    def download(*_, **__):
        raise AssertionError("the weights are downloaded")

    monkeypatch.setattr("timm.models._builder.load_pretrained", download)
    for convert in (
        lambda: check_convertible("resnet18.a1_in1k", "source"),
        lambda: from_vit("resnet18.a1_in1k"),
        lambda: timm.create_model("diffvit", base="resnet18.a1_in1k", pretrained=True),
    ):
        with pytest.raises(ValueError, match="ResNet cannot be converted: it has no self-attention layer of timm"):
            convert()


def test_a_config_of_a_feature_extractor_is_refused(tmp_path):
    save_pretrained(timm.create_model("test_resnet", num_classes=3), tmp_path)
    rewrite(tmp_path, "model_args", "features_only", value=True)
    with pytest.raises(InputError, match="describes a feature extractor, which has no outputs"):
        load_model(str(tmp_path))
