"""The configuration: its command line, its presets, and refusals that name the option and the value."""

import dataclasses

import pytest

from diffvit_timm.cli.parser import parse_config
from diffvit_timm.errors import InputError
from diffvit_timm.training.config import TrainConfig

REQUIRED = ["--dataset", "pets", "--model", "diffvit_tiny_patch16"]


@dataclasses.dataclass(frozen=True)
class RecipeConfig(TrainConfig):
    dataset: str = "pets"
    model: str = "diffvit_tiny_patch16"
    demo: bool = False


def preset(tmp_path, text):
    path = tmp_path / "preset.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_a_command_line_sets_what_it_names_and_nothing_else():
    config = parse_config(TrainConfig, [*REQUIRED, "--lr", "3e-4", "--attn", "plain", "--no-pretrained"])
    expected = TrainConfig("pets", "diffvit_tiny_patch16", lr=3e-4, attn="plain", pretrained=False)
    assert config == expected


def test_several_values_follow_one_flag():
    config = parse_config(TrainConfig, [*REQUIRED, "--model-kwargs", "img_size=96", "attn_layer=diff"])
    assert config.model_kwargs == ("img_size=96", "attn_layer=diff")


def test_settings_of_the_model_are_what_python_and_yaml_write():
    pairs = (
        "depth=6", "branch_dims=(12, 4)", "head_norm=false", "qkv_bias=off", "qk_norm=True", "norm_eps=null",
        "pos_embed=none", "mlp_layer=[",
    )  # fmt: skip
    assert TrainConfig("pets", "vit", model_kwargs=pairs).model_arguments == {
        "depth": 6,
        "branch_dims": (12, 4),
        "head_norm": False,
        "qkv_bias": False,
        "qk_norm": True,
        "norm_eps": None,
        "pos_embed": "none",
        "mlp_layer": "[",
    }


def test_a_recipes_own_option_stands_beside_the_trainers():
    assert parse_config(RecipeConfig, ["--demo", "--seed", "3"]) == RecipeConfig(demo=True, seed=3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "--epochs 0 must be at least 1"),
        ("batch_size", 0, "--batch-size 0 must be at least 1"),
        ("grad_accum", 0, "--grad-accum 0 must be at least 1"),
        ("grad_accum", 33, "--grad-accum 33 exceeds --batch-size 32"),
        ("log_every", -1, "--log-every -1 must be at least 1"),
        ("lr", 0.0, "--lr 0.0 must be above 0"),
        ("lr", float("nan"), "--lr nan must be above 0"),
        ("layer_decay", -0.5, "--layer-decay -0.5 must be above 0"),
        ("warmup_epochs", -1.0, "--warmup-epochs -1.0 must not be negative"),
        ("weight_decay", -0.1, "--weight-decay -0.1 must not be negative"),
        ("clip_grad", -1.0, "--clip-grad -1.0 must not be negative"),
        ("mixup", -0.8, "--mixup -0.8 must not be negative"),
        ("cutmix", -1.0, "--cutmix -1.0 must not be negative"),
        ("lambda_warmup", -2.0, "--lambda-warmup -2.0 must not be negative"),
        ("workers", -1, "--workers -1 must not be negative"),
        ("seed", -1, "--seed -1 must not be negative"),
        ("label_smoothing", 1.0, "--label-smoothing 1.0 must be in [0, 1)"),
        ("drop_path", 1.5, "--drop-path 1.5 must be in [0, 1)"),
        ("crop_scale", 0.0, "--crop-scale 0.0 must be in (0, 1]"),
        ("freeze", "head", "--freeze head must be none, backbone or a number of blocks"),
        ("ema", 1.0, "--ema 1.0 must be in [0, 1)"),
        ("max_steps", -1, "--max-steps -1 must not be negative"),
        ("repeated_augmentation", 0, "--repeated-augmentation 0 must be at least 1"),
        ("augment", "crop+blur", "--augment crop+blur: 'blur' is not known"),
        ("stream", 8, "--stream 8 is less than --batch-size 32"),
        ("model_kwargs", ("img_size", "96"), "must be NAME=VALUE pairs"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_option_and_the_value(option, value, message):
    with pytest.raises(InputError) as caught:
        TrainConfig("pets", "vit", **{option: value})
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--{option.replace('_', '-')} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stream=64, conversion="calibrated"), "--conversion calibrated needs stored images"),
        (dict(stream=64, head_init="probe"), "--head-init probe needs stored images"),
        (dict(stream=64, max_train_samples=9), "--max-train-samples 9 needs stored images"),
        (dict(stream=64, repeated_augmentation=2), "--repeated-augmentation 2 needs stored images"),
        (dict(distill_weight=0.3), "--distill-weight 0.3 has no effect without --teacher"),
        (dict(distill_temperature=4.0), "--distill-temperature 4.0 has no effect without --teacher"),
        (dict(lambda_target=0.5), "--lambda-target 0.5 has no effect without --lambda-warmup"),
        (dict(crop_scale=0.2, augment="shift+flip"), "--crop-scale 0.2 has no effect without --augment crop"),
        (dict(calibration_images=64), "--calibration-images 64 has no effect without --conversion calibrated"),
        (dict(eval_only=True, dry_run=True), "--eval-only neither trains nor resumes"),
        (dict(dry_run=True, resume="auto"), "--dry-run starts anew: leave out --resume auto"),
        (dict(eval_only=True, reset_head=True), "--eval-only tests the head that there is: leave out --reset-head"),
        (dict(model_kwargs=("attn=plain",)), "--model-kwargs attn=... is an option of its own: pass --attn"),
        (dict(model_kwargs=("conversion=svd",)), "--model-kwargs conversion=... .* pass --conversion"),
        (dict(model_kwargs=("drop_path_rate=0.1",)), "--model-kwargs drop_path_rate=... .* pass --drop-path"),
        (dict(model_kwargs=("pretrained=false",)), "--model-kwargs pretrained=... .* pass --pretrained"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig("pets", "vit", **options)


def test_the_command_line_refuses_in_the_same_words():
    with pytest.raises(InputError, match=r"^--lr -1\.0 must be above 0$"):
        parse_config(TrainConfig, [*REQUIRED, "--lr", "-1"])


@pytest.mark.parametrize("arguments", [["--precision", "fp8"], ["--epochs", "four"], ["--learning-rate", "1"]])
def test_what_does_not_parse_exits_with_2_and_names_the_option(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(TrainConfig, [*REQUIRED, *arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert arguments[0] in captured.err
    assert not captured.out


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(RecipeConfig, ["--help"], description="Fine-tune on the pets.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Fine-tune on the pets." in text
    for field in dataclasses.fields(RecipeConfig):
        assert f"--{field.name.replace('_', '-')}" in text


def test_a_preset_sets_values_of_every_kind(tmp_path):
    arguments = preset(
        tmp_path,
        "dataset: my/pets\nmodel: vit\npretrained: false\nlr: 1e-4\nbatch_size: 64\nattn: plain\n"
        "model_kwargs: [img_size=96, in_chans=1]\ntrackers: []\n",
    )
    assert parse_config(TrainConfig, arguments) == TrainConfig(
        "my/pets", "vit", pretrained=False, lr=1e-4, batch_size=64, attn="plain",
        model_kwargs=("img_size=96", "in_chans=1")
    )  # fmt: skip


@pytest.mark.parametrize("first", ["preset", "options"])
def test_options_override_a_preset_wherever_they_stand(tmp_path, first):
    from_file = preset(tmp_path, "lr: 0.1\nseed: 4\npretrained: false\nmodel_kwargs: [img_size=96, in_chans=1]\n")
    options = ["--lr", "0.2", "--pretrained", "--model-kwargs", "img_size=64"]
    config = parse_config(RecipeConfig, [*from_file, *options] if first == "preset" else [*options, *from_file])
    assert config == RecipeConfig(lr=0.2, seed=4, pretrained=True, model_kwargs=("img_size=64",))


def test_a_word_that_yaml_reads_as_a_truth_value_stays_a_word(tmp_path):
    config = parse_config(TrainConfig, [*preset(tmp_path, "precision: no\ncompile: yes\n"), *REQUIRED])
    assert (config.precision, config.compile) == ("no", True)


def test_no_epoch_of_a_seed_has_the_order_of_another_seeds():
    orders = [TrainConfig("pets", "vit", seed=seed).data_seed + epoch for seed in range(3) for epoch in range(1000)]
    assert len(set(orders)) == len(orders)


def test_an_unknown_key_of_a_preset_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(RecipeConfig, preset(tmp_path, "lr: 0.1\nlearning_rate: 0.1\n"))
    assert caught.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_a_presets_number_out_of_range_is_refused_like_an_options(tmp_path):
    with pytest.raises(InputError, match=r"^--epochs 0 must be at least 1$"):
        parse_config(RecipeConfig, preset(tmp_path, "epochs: 0\n"))


@pytest.mark.parametrize("text", ["- lr\n- 0.1\n", "", "just words", "lr: [0.1\n"])
def test_a_file_that_is_no_preset_is_refused_by_name(tmp_path, text):
    arguments = preset(tmp_path, text)
    with pytest.raises(InputError) as caught:
        parse_config(RecipeConfig, arguments)
    assert str(caught.value).startswith(f"--config {arguments[1]} ")


def test_a_missing_preset_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"^--config .*nowhere\.yaml cannot be read"):
        parse_config(RecipeConfig, ["--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(InputError, match="--config needs the path of a YAML file"):
        parse_config(RecipeConfig, ["--config"])
