"""The options of a training: their command line, their presets, and errors that name the parameter and the value."""

import dataclasses

import pytest

from diffvit_timm.cli.parser import parse_options
from diffvit_timm.errors import InputError
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.model_config import ModelConfig

REQUIRED = ["--dataset", "pets", "--model", "diffvit_tiny_patch16"]
PETS = TrainConfig.from_flat("pets", "diffvit_tiny_patch16")


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    train: TrainConfig = PETS
    demo: bool = False

    @classmethod
    def of(cls, demo=False, **options):
        return cls(TrainConfig.from_flat("pets", "diffvit_tiny_patch16", **options), demo)


def preset(tmp_path, text):
    path = tmp_path / "preset.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_a_command_line_sets_what_it_names_and_nothing_else():
    config = parse_options(TrainConfig, [*REQUIRED, "--lr", "3e-4", "--attn", "plain", "--no-pretrained"])
    expected = TrainConfig.from_flat("pets", "diffvit_tiny_patch16", lr=3e-4, attn="plain", pretrained=False)
    assert config == expected


def test_several_values_follow_one_flag():
    config = parse_options(TrainConfig, [*REQUIRED, "--model-kwargs", "in_chans=1", "attn_layer=diff"])
    assert config.model.model_kwargs == ("in_chans=1", "attn_layer=diff")


def test_arguments_of_the_model_are_read_as_python_or_yaml_and_null_removes_one():
    pairs = (
        "depth=6", "branch_dims=(12, 4)", "head_norm=false", "qkv_bias=off", "qk_norm=True", "norm_eps=null",
        "pos_embed=none", "mlp_layer=[",
    )  # fmt: skip
    assert TrainConfig.from_flat("pets", "vit", model_kwargs=pairs).model.keyword_arguments == {
        "depth": 6,
        "branch_dims": (12, 4),
        "head_norm": False,
        "qkv_bias": False,
        "qk_norm": True,
        "pos_embed": "none",
        "mlp_layer": "[",
    }


def test_an_option_of_a_command_stands_beside_those_of_the_training():
    digits = TrainConfig.from_flat("digits", "diffvit_tiny_patch16", seed=3)  # --demo is also a preset
    assert parse_options(RecipeConfig, ["--demo", "--seed", "3"]) == RecipeConfig(digits, demo=True)
    assert parse_options(RecipeConfig, ["--no-demo", "--seed", "3"]) == RecipeConfig.of(demo=False, seed=3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "`epochs=0` must be at least 1"),
        ("batch_size", 0, "`batch_size=0` must be at least 1"),
        ("grad_accum", 0, "`grad_accum=0` must be at least 1"),
        ("grad_accum", 33, "`grad_accum=33` exceeds `batch_size=32`"),
        ("log_every", -1, "`log_every=-1` must be at least 1"),
        ("lr", 0.0, "`lr=0.0` must be above 0"),
        ("lr", float("nan"), "`lr=nan` must be a finite number"),
        ("layer_decay", -0.5, "`layer_decay=-0.5` must be above 0"),
        ("warmup_epochs", -1.0, "`warmup_epochs=-1.0` must not be negative"),
        ("weight_decay", -0.1, "`weight_decay=-0.1` must not be negative"),
        ("clip_grad", -1.0, "`clip_grad=-1.0` must not be negative"),
        ("mixup", -0.8, "`mixup=-0.8` must not be negative"),
        ("cutmix", -1.0, "`cutmix=-1.0` must not be negative"),
        ("lambda_warmup", -2.0, "`lambda_warmup=-2.0` must not be negative"),
        ("lambda_lr_scale", 0.0, "`lambda_lr_scale=0.0` must be above 0"),
        ("query_lr_scale", -1.0, "`query_lr_scale=-1.0` must be above 0"),
        ("workers", -1, "`workers=-1` must not be negative"),
        ("seed", -1, "`seed=-1` must not be negative"),
        ("label_smoothing", 1.0, "`label_smoothing=1.0` must be in [0, 1)"),
        ("drop_path", 1.5, "`drop_path=1.5` must be in [0, 1)"),
        ("dropout", 1.0, "`dropout=1.0` must be in [0, 1)"),
        ("warmup_steps", -1, "`warmup_steps=-1` must not be negative"),
        ("max_val_samples", -1, "`max_val_samples=-1` must not be negative"),
        ("val_share", 1.0, "`val_share=1.0` must be in [0, 1)"),
        ("val_share", 0.0, "`val_share=0.0` lets test images choose the weights: pass `keep_weights=last`"),
        ("crop_scale", 0.0, "`crop_scale=0.0` must be in (0, 1]"),
        ("freeze", "head", "`freeze=head` must be none, backbone, proj or a number of blocks"),
        ("ema", 1.0, "`ema=1.0` must be in [0, 1)"),
        ("max_steps", -1, "`max_steps=-1` must not be negative"),
        ("repeated_augmentation", 0, "`repeated_augmentation=0` must be at least 1"),
        ("augment", "crop+blur", "`augment=crop+blur`: 'blur' is not known"),
        ("stream", 8, "`stream=8` is less than `batch_size=32`"),
        ("model_kwargs", ("depth", "2"), "`model_kwargs=depth 2` must be NAME=VALUE pairs"),
        ("img_size", (0,), "`img_size=0` must be one positive number of pixels, or height and width"),
        ("img_size", (32, -16), "`img_size=32 -16` must be one positive number of pixels, or height and width"),
        ("img_size", (32, 32, 3), "`img_size=32 32 3` must be one positive number of pixels, or height and width"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_option_and_the_value(option, value, message):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_flat("pets", "vit", **{option: value})
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"`{option}=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stream=64, conversion="calibrated"), "`conversion=calibrated` needs stored images"),
        (dict(stream=64, head_init="probe"), "`head_init=probe` needs stored images"),
        (dict(stream=64, max_train_samples=9), "`max_train_samples=9` needs stored images"),
        (dict(stream=64, repeated_augmentation=2), "`repeated_augmentation=2` needs stored images"),
        (dict(patience=2, keep_weights="last"), "`patience=2` chooses an epoch: leave out `keep_weights=last`"),
        (dict(distill_weight=0.3), "`distill_weight=0.3` has no effect without `teacher`"),
        (dict(distill_temperature=4.0), "`distill_temperature=4.0` has no effect without `teacher`"),
        (dict(lambda_target=0.5), "`lambda_target=0.5` has no effect without `lambda_warmup`"),
        (dict(crop_scale=0.2, augment="shift+flip"), "`crop_scale=0.2` has no effect without `augment=crop`"),
        (dict(calibration_images=64), "`calibration_images=64` has no effect without `conversion=calibrated`"),
        (dict(eval_only=True, dry_run=True), "`eval_only` neither trains nor resumes"),
        (dict(dry_run=True, resume="auto"), "`dry_run` starts a new run: leave out `resume=auto`"),
        (dict(eval_only=True, reset_head=True), "`eval_only` tests the head of the model: leave out `reset_head`"),
        (dict(model_kwargs=("attn=plain",)), "`model_kwargs=attn=...` is an option of its own: pass `attn`"),
        (dict(model_kwargs=("conversion=svd",)), "`model_kwargs=conversion=...` .* pass `conversion`"),
        (dict(model_kwargs=("drop_path_rate=0.1",)), "`model_kwargs=drop_path_rate=...` .* pass `drop_path`"),
        (dict(model_kwargs=("pretrained=false",)), "`model_kwargs=pretrained=...` .* pass `pretrained`"),
        (dict(model_kwargs=("img_size=96",)), "`model_kwargs=img_size=...` is an option of its own: pass `img_size`"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_flat("pets", "vit", **options)


def test_the_command_line_refuses_in_the_same_words():
    with pytest.raises(InputError, match=r"^`lr=-1\.0` must be above 0$"):
        parse_options(TrainConfig, [*REQUIRED, "--lr", "-1"])


@pytest.mark.parametrize("arguments", [["--precision", "fp8"], ["--epochs", "four"], ["--img-size", "large"]])
def test_what_does_not_parse_is_bad_input_that_names_the_option(arguments, capsys):
    with pytest.raises(InputError, match=arguments[0]):
        parse_options(TrainConfig, [*REQUIRED, *arguments])
    assert capsys.readouterr() == ("", "")


def test_an_unknown_option_is_refused_with_the_one_that_was_probably_meant(capsys):
    with pytest.raises(InputError) as caught:
        parse_options(TrainConfig, [*REQUIRED, "--learning-rate", "1"], prog="diffvit train")
    assert str(caught.value) == "--learning-rate is not an option of diffvit train: did you mean --lr?"
    assert capsys.readouterr() == ("", "")


def test_the_image_size_is_one_number_or_height_and_width():
    assert parse_options(TrainConfig, REQUIRED).model.img_size == ()
    assert parse_options(TrainConfig, [*REQUIRED, "--img-size", "96"]).model.img_size == (96,)
    assert parse_options(TrainConfig, [*REQUIRED, "--img-size", "96", "128"]).model.img_size == (96, 128)


def test_every_option_has_one_name_in_all_parts_together():
    config = TrainConfig.from_flat("pets", "vit")
    parts = (config.data, config.model, config.optim, config.run)
    names = [field.name for part in parts for field in dataclasses.fields(part)]
    assert len(set(names)) == len(names)
    assert set(config.flat()) == set(names)


def test_flat_options_make_the_same_configuration_again():
    config = TrainConfig.from_flat("pets", "vit", lr=1e-3, img_size=(96,), augment="flip", seed=5, workers=0)
    assert (config.optim.lr, config.model.img_size, config.data.augment, config.run.seed) == (1e-3, (96,), "flip", 5)
    assert TrainConfig.from_flat(**config.flat()) == config
    changed = config.replace(seed=6, model="other")
    assert changed.flat() == {**config.flat(), "seed": 6, "model": "other"}
    assert config.model == ModelConfig("vit", img_size=(96,))


def test_an_unknown_option_of_a_configuration_is_a_type_error():
    with pytest.raises(TypeError, match="unknown options: learning_rate, wd"):
        TrainConfig.from_flat("pets", "vit", learning_rate=1e-3, wd=0.1)
    with pytest.raises(TypeError, match="unknown options: learning_rate"):
        TrainConfig.from_flat("pets", "vit").replace(learning_rate=1e-3)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("stream", 64, "64"), ("img_size", (96, 64), "96 64"), ("ema", 0.9, "0.9"), ("eval_only", True, "True")],
)
def test_an_option_that_has_no_place_is_refused_in_whichever_part_it_is(name, value, shown):
    TrainConfig.from_flat("pets", "vit").require_default(name, "has no place here")
    with pytest.raises(InputError) as caught:
        TrainConfig.from_flat("pets", "vit", **{name: value}).require_default(name, "has no place here")
    assert str(caught.value) == f"`{name}={shown}` has no place here: leave it out"


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(RecipeConfig, ["--help"], description="Fine-tune on the pets.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Fine-tune on the pets." in text
    for name in (*RecipeConfig().train.flat(), "demo"):
        assert f"--{name.replace('_', '-')}" in text


def test_a_preset_sets_values_of_every_kind(tmp_path):
    arguments = preset(
        tmp_path,
        "dataset: my/pets\nmodel: vit\npretrained: false\nlr: 1e-4\nbatch_size: 64\nattn: plain\n"
        "img_size: [96]\nmodel_kwargs: [in_chans=1, depth=2]\ntrackers: []\n",
    )
    assert parse_options(TrainConfig, arguments) == TrainConfig.from_flat(
        "my/pets", "vit", pretrained=False, lr=1e-4, batch_size=64, attn="plain",
        img_size=(96,), model_kwargs=("in_chans=1", "depth=2")
    )  # fmt: skip


@pytest.mark.parametrize("first", ["preset", "options"])
def test_options_override_a_preset_wherever_they_stand(tmp_path, first):
    from_file = preset(tmp_path, "lr: 0.1\nseed: 4\npretrained: false\nmodel_kwargs: [depth=2, in_chans=1]\n")
    options = ["--lr", "0.2", "--pretrained", "--model-kwargs", "depth=1"]
    config = parse_options(RecipeConfig, [*from_file, *options] if first == "preset" else [*options, *from_file])
    assert config == RecipeConfig.of(lr=0.2, seed=4, pretrained=True, model_kwargs=("depth=1", "in_chans=1"))


def test_arguments_of_the_model_replace_those_of_their_name_and_keep_the_others(tmp_path):
    from_file = preset(tmp_path, 'config: cifar10/diff\nmodel_kwargs: [depth=2, "stem=[8,16]", depth=3]\n')
    options = ["--model_kwargs", "stem=null", "--lr", "0.2", "--model-kwargs", "mlp_ratio=4"]
    for argv in ([*from_file, *options], [*options, *from_file]):
        model = parse_options(RecipeConfig, argv).train.model
        assert model.model_kwargs == ("head_norm=true", "depth=3", "stem=null", "mlp_ratio=4")
    assert model.keyword_arguments == {"head_norm": True, "depth": 3, "mlp_ratio": 4}  # null removes an argument


def test_an_empty_list_of_a_file_removes_the_arguments_of_the_model_that_its_preset_has(tmp_path):
    assert parse_options(RecipeConfig, ["--config", "cifar10_full"]).train.model.model_kwargs
    model = parse_options(RecipeConfig, preset(tmp_path, "config: cifar10_full\nmodel_kwargs: []\n")).train.model
    assert model.model_kwargs == ()
    own = [*preset(tmp_path, "config: cifar10_full\nmodel_kwargs: []\n"), "--model-kwargs", "depth=2"]
    assert parse_options(RecipeConfig, own).train.model.model_kwargs == ("depth=2",)


def test_an_argument_of_the_model_without_a_value_stays_an_error_beside_one_of_its_name():
    with pytest.raises(InputError, match=r"`model_kwargs=depth depth=2` must be NAME=VALUE pairs"):
        parse_options(TrainConfig, [*REQUIRED, "--model-kwargs", "depth", "depth=2"])


def test_a_word_that_yaml_reads_as_a_truth_value_stays_a_word(tmp_path):
    config = parse_options(TrainConfig, [*preset(tmp_path, "precision: no\ncompile: yes\n"), *REQUIRED])
    assert (config.run.precision, config.run.compile) == ("no", True)


def test_no_epoch_has_the_order_of_an_epoch_of_another_seed():
    orders = [
        TrainConfig.from_flat("pets", "vit", seed=seed).run.data_seed + epoch
        for seed in range(3)
        for epoch in range(1000)
    ]
    assert len(set(orders)) == len(orders)


def test_an_unknown_key_of_a_preset_is_refused_by_name(tmp_path, capsys):
    arguments = preset(tmp_path, "lr: 0.1\nlearning_rate: 0.1\n")
    with pytest.raises(InputError) as caught:
        parse_options(RecipeConfig, arguments, prog="diffvit train")
    assert str(caught.value).startswith(f"--config {arguments[1]}: learning_rate is not an option of diffvit train")
    assert capsys.readouterr() == ("", "")


def test_a_number_out_of_range_is_refused_in_a_preset_too(tmp_path):
    with pytest.raises(InputError, match=r"^`epochs=0` must be at least 1$"):
        parse_options(RecipeConfig, preset(tmp_path, "epochs: 0\n"))


@pytest.mark.parametrize("text", ["- lr\n- 0.1\n", "", "just words", "lr: [0.1\n"])
def test_a_file_that_is_not_a_preset_is_refused_by_name(tmp_path, text):
    arguments = preset(tmp_path, text)
    with pytest.raises(InputError) as caught:
        parse_options(RecipeConfig, arguments)
    assert str(caught.value).startswith(f"--config {arguments[1]} ")


def test_a_missing_preset_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"^--config .*nowhere\.yaml is neither a preset"):
        parse_options(RecipeConfig, ["--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(InputError, match=r"--config needs a preset .* or the path of a YAML file"):
        parse_options(RecipeConfig, ["--config"])
