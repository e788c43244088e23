"""Odd values of options are one line, for every option of every command and in every dataclass of options."""

import dataclasses
import math

import pytest
from odd_values import REQUIRED, options_of, try_values
from PIL import Image

from diffvit_timm.cli.commands import train
from diffvit_timm.cli.main import COMMANDS
from diffvit_timm.cli.parser import parse_options
from diffvit_timm.data.config import DataConfig
from diffvit_timm.errors import InputError
from diffvit_timm.options import LIMITS
from diffvit_timm.studies.scaling import ScalingConfig
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.model_config import ModelConfig
from diffvit_timm.training.optim_config import OptimConfig
from diffvit_timm.training.run_config import RunConfig


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_every_option_of_every_command_parses_an_odd_value_or_is_one_line(image, tmp_path):
    outcomes, escaped = try_values(image, tmp_path, per_option=1)
    assert not escaped
    assert outcomes.total() > 300
    assert min(outcomes.values()) > 30


def numbers(options):
    """Yield (dataclass, name) of every number, also in nested dataclasses."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value)
        elif {"int", "float"} & set(str(field.type).replace("[", " ").replace(",", " ").replace("]", " ").split()) or (
            field.type in (int, float)
        ):
            yield options, field.name


def test_the_walk_covers_every_command_with_options_of_its_own():
    assert {*REQUIRED, "timm"} == set(COMMANDS)  # timm hands its arguments to a script of timm


@pytest.mark.parametrize("command", REQUIRED)
def test_no_number_of_any_command_can_be_infinite_or_nan(command, image):
    required = [str(image) if word == "IMAGE" else word for word in REQUIRED[command].split()]
    for options, name in numbers(parse_options(options_of(command), required)):
        for value in (math.nan, math.inf, -math.inf):
            given = (value, value) if isinstance(getattr(options, name), tuple) or name == "branch_dims" else value
            with pytest.raises(InputError, match=f"^`{name}={value}` must be a finite number$"):
                dataclasses.replace(options, **{name: given})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OptimConfig, {"epochs": 10**18}),
        (OptimConfig, {"batch_size": 10**12}),
        (DataConfig, {"dataset": "x", "workers": 10**6}),
        (DataConfig, {"dataset": "x", "repeated_augmentation": 10**6}),
        (ModelConfig, {"model": "y", "img_size": (224, 10**6)}),
        (ModelConfig, {"model": "y", "calibration_images": 10**15, "conversion": "calibrated"}),
        (ModelConfig, {"model": "y", "model_kwargs": ("depth=1000000000",)}),
        (RunConfig, {"seed": 2**32}),
        (RunConfig, {"log_every": 10**10}),
    ],
)
def test_a_number_that_would_fill_the_memory_or_never_end_is_refused_with_its_limit(kind, options):
    with pytest.raises(InputError) as caught:
        kind(**options)
    name = caught.value.parameter
    assert str(caught.value).endswith(f"must be at most {LIMITS.get(name, 10**9)}")


SUPERSCRIPT, FULLWIDTH, EURO = "\N{SUPERSCRIPT TWO}", "\N{FULLWIDTH DIGIT THREE}", "\N{EURO SIGN}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"--epochs {SUPERSCRIPT}", f"--epochs {SUPERSCRIPT}: write numbers with the digits 0 to 9"),
        (f"--img-size 32 {FULLWIDTH}", f"--img-size {FULLWIDTH}: write numbers with the digits 0 to 9"),
        ("--lr 0,1", "--lr 0,1: write a number, such as 0.001"),
        ("--epochs 1.5", "--epochs 1.5: write a whole number, such as 16"),
        ("--img-size 224,224", "--img-size 224,224: write whole numbers, with spaces between them"),
        ("--progressive-sizes 16 2O", "--progressive-sizes 2O: write whole numbers, with spaces between them"),
        (f"--freeze {SUPERSCRIPT}", f"`freeze={SUPERSCRIPT}` must be none, backbone, proj or a number of blocks"),
        ("--output=", "`output` is empty: give a value, or leave it out"),
        ("--trackers=", "`trackers` is empty: give a value, or leave it out"),
        ("--img-size --lr 1", "--img-size needs at least one value"),
        ("--img-size", "--img-size needs at least one value"),
    ],
)
def test_values_that_are_refused_on_the_command_line(words, message):
    with pytest.raises(InputError) as caught:
        parse_options(train.Options, ["--dataset", "x", "--model", "y", *words.split(" ")])
    assert str(caught.value) == message


LIMIT = "is too long: a path has at most 4095 bytes, and each of its names at most 255"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`output` is empty: give a value, or leave it out"),
        ("a\nb", r"`output=a\nb` contains characters that cannot be printed: use another name"),
        ("a\0b", r"`output=a\x00b` contains characters that cannot be printed: use another name"),
        ("a\udcffb", r"`output=a\udcffb` contains characters that cannot be printed: use another name"),
        ("~no-such-user/x", "`output=~no-such-user/x` starts with ~, but there is no such user: write the whole path"),
        (f"runs/{EURO * 86}", f"`output=runs/{EURO * 35}...` {LIMIT}"),
        ("x/" * 2048, f"`output={'x/' * 20}...` {LIMIT}"),
    ],
    ids=["empty", "line", "NUL", "no UTF-8", "home", "name", "path"],
)
def test_a_text_that_no_file_can_be_called_is_refused(text, message):
    with pytest.raises(InputError) as caught:
        RunConfig(output=text)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["10.00\N{NARROW NO-BREAK SPACE}AM", EURO * 85, "$a_b^c", "x" * 255])
def test_a_text_of_any_script_is_a_name(text):
    assert RunConfig(output=text).output == text


def preset_refusal(tmp_path, text):
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    with pytest.raises(InputError) as caught:
        parse_options(train.Options, ["--dataset", "x", "--model", "y", "--config", str(preset)], prog="diffvit train")
    return str(caught.value).removeprefix(f"--config {preset}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [1, 2]", ": lr takes one value, not a list"),
        ("output: {a: b}", ": output must be one value or a list of values"),
        ("img_size: [[1]]", ": img_size must be one value or a list of values"),
        ("compile: maybe", ": compile must be true or false, not maybe"),
        ("1: 2", ": 1 is not an option of diffvit train"),
        ("on: 2", ": on is not an option of diffvit train"),
        ("lr: .nan", "--lr .nan: write a number, such as 0.001"),
        ("img_size: 224 224", "--img-size 224 224: write a list of whole numbers, such as [16]"),
        ("[a, b]: 2", " cannot be read: "),
        ("- lr", " is not a mapping of options to values"),
        ("lr: " + "[" * 2000, " cannot be read: "),
        ('"lr\\0": 1', ": lr\\x00 is not an option of diffvit train"),
    ],
)
def test_odd_values_of_a_preset_are_one_line(tmp_path, text, message):
    assert preset_refusal(tmp_path, text).removeprefix("--lr: ").startswith(message)


def test_a_preset_that_starts_from_itself_is_refused(tmp_path):
    assert preset_refusal(tmp_path, f"config: {tmp_path}/mine.yaml") == " starts from itself: change its option config"


def test_words_of_a_preset_are_read_as_on_a_command_line(tmp_path):
    preset = tmp_path / "mine.yaml"
    words = ("precision: no", "output: 007", "dataset: 2024-01-01", "compile: on", "teacher: null", "lr: 1e-3")
    preset.write_text("\n".join([*words, "img_size: [32, 64]"]))
    read = parse_options(train.Options, ["--model", "y", "--config", str(preset)]).train
    assert (read.run.precision, read.run.output, read.run.compile) == ("no", "007", True)
    assert (read.data.dataset, read.optim.teacher, read.optim.lr) == ("2024-01-01", None, 1e-3)
    assert read.model.img_size == (32, 64)


@pytest.mark.parametrize("text", ["(" * 200, "[" * 200, "9" * 200 + "x"])
def test_an_argument_of_the_model_that_python_cannot_read_is_a_word(text):
    assert ModelConfig("y", model_kwargs=(f"a={text}",)).keyword_arguments == {"a": text}


@pytest.mark.parametrize("text", ["1e999", "-1e999"])
def test_an_argument_of_the_model_is_finite(text):
    with pytest.raises(InputError, match=r"^`a=-?inf` must be a finite number$"):
        ModelConfig("y", model_kwargs=(f"a={text}",))


@pytest.mark.parametrize("size", ["32x1001", "65568x2"])
def test_a_size_beyond_any_machine_is_refused(size):
    with pytest.raises(InputError, match=f"^`sizes={size}` must be at most 65536x1000$"):
        ScalingConfig(sizes=(size,))


def test_a_configuration_of_python_checks_its_values_too():
    with pytest.raises(InputError, match=r"^`lr=inf` must be a finite number$"):
        TrainConfig.from_flat("x", "y", lr=math.inf)
