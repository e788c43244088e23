"""A whole training, from options to a result."""

import json

import pytest
import timm
import torch

from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.loading import model_data_config
from diffvit_timm.errors import InputError
from diffvit_timm.training import recipe
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.model import create_model
from diffvit_timm.training.recipe import train

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def small(folder, tmp_path, **options):
    """Return the options of a whole training of a registered model, small enough for a test."""
    shape = ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")
    return TrainConfig.from_flat(
        str(folder), "diffvit_tiny_patch16", pretrained=False, img_size=(16,), model_kwargs=shape,
        epochs=1, batch_size=8, workers=0, augment="none", output=str(tmp_path / "run"), **options
    )  # fmt: skip


def test_a_whole_training_goes_from_a_folder_to_a_result(parquet_folder, tmp_path):
    result = train(small(parquet_folder, tmp_path), "recipe")
    assert result == json.loads((tmp_path / "run" / "result.json").read_text()) | {
        "test_interval_95": result["test_interval_95"], "output": str(tmp_path / "run")
    }  # fmt: skip
    assert result["conversion"] is None
    assert result["model"] == "diffvit_tiny_patch16"
    loaded = timm.create_model(f"local-dir:{tmp_path}/run/best", pretrained=True)
    assert model_data_config(loaded)["input_size"] == (3, 16, 16)


@pytest.mark.parametrize(
    "wrong",
    [{"dataset": "./nowhere"}, {"label_column": "breed"}, {"model": "diffvit_huge"}, {"attn": "plain", "model": "vit"}],
)
def test_a_training_with_wrong_input_leaves_no_run_folder(image_folder, tmp_path, wrong):
    with pytest.raises(InputError):
        train(small(image_folder, tmp_path).replace(**wrong), "recipe")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_a_model_to_continue_from(image_folder, splits, tmp_path, saved_figures):
    first = train(small(image_folder, tmp_path), "recipe")
    again = small(image_folder, tmp_path).replace(
        model=f"local-dir:{tmp_path}/run/best", pretrained=True, img_size=(), model_kwargs=(),
        output=str(tmp_path / "more"), lr=1e-12
    )  # fmt: skip
    assert train(again, "recipe")["test_accuracy"] == first["test_accuracy"]
    curves, predictions = (figure.get_suptitle() for figure in saved_figures[-2:])
    assert curves.startswith("best, differential attention, on ")
    assert predictions.startswith(f"{curves}: ")
    assert str(tmp_path) not in curves + predictions  # the pictures are pushed


def test_another_backbone_is_converted_trained_saved_and_continued_from(image_folder, tmp_path):
    shape = ("embed_dim=32", "depth=2", "num_heads=2")
    config = small(image_folder, tmp_path).replace(
        model="vit_small_patch16_dinov3", attn="diff_v2", img_size=(32,), model_kwargs=shape, freeze="1"
    )
    result = train(config, "recipe")
    assert result["attn"] == "diff_v2"
    assert len(result["lambda"]) == 2
    again = config.replace(
        model=f"{tmp_path}/run", attn="model", pretrained=True, img_size=(), model_kwargs=(), lr=1e-12,
        output=str(tmp_path / "more"),
    )  # fmt: skip
    assert train(again, "recipe")["test_accuracy"] == result["test_accuracy"]


def test_a_part_of_the_training_images_is_drawn_and_the_result_says_how_many(image_folder, tmp_path):
    result = train(small(image_folder, tmp_path, max_train_samples=20), "recipe")
    assert (result["train_images"], result["updates"], result["test_images"]) == (20, 3, 18)
    with pytest.raises(InputError, match=r"^`max_train_samples=33` exceeds the 32 training images"):
        train(small(image_folder, tmp_path / "more", max_train_samples=33), "recipe")


def test_a_part_of_the_validation_images_is_drawn_and_more_than_there_are_is_refused(image_folder, tmp_path, capsys):
    config = small(image_folder, tmp_path).replace(val_share=0.5)
    train(config.replace(max_val_samples=6), "recipe")
    assert "18 train, 6 val, 18 test images" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^`max_val_samples=19` exceeds the 18 validation images$"):
        train(config.replace(max_val_samples=19, output=str(tmp_path / "more")), "recipe")


def test_the_last_weights_are_kept_and_tested_although_an_earlier_epoch_was_better(image_folder, tmp_path):
    # The first epoch changes nothing visible, and the others unlearn: the labels of the training images are wrong.
    common = small(image_folder, tmp_path).replace(epochs=3, seed=1, label_noise=0.9, lr=0.05, layer_decay=1.0)
    rows = {}
    for keep in ("best", "last"):
        output = tmp_path / keep
        result = train(common.replace(keep_weights=keep, output=str(output)), "recipe")
        epochs = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        rows[keep] = (
            [row["val_loss"] for row in epochs if "val_loss" in row],
            result["val_accuracy"],
            result["test_loss"],
        )
    assert rows["best"][0] == rows["last"][0]
    assert rows["best"][2] != rows["last"][2]
    model = timm.create_model(f"local-dir:{tmp_path}/last/best", pretrained=True)
    again = train(
        TrainConfig.from_flat(
            str(image_folder),
            f"local-dir:{tmp_path}/last/best",
            eval_only=True,
            workers=0,
            output=str(tmp_path / "again"),
        ),
        "recipe",
    )
    assert model.num_classes == 3
    assert again["test_loss"] == pytest.approx(rows["last"][2], rel=1e-5)


def test_dropout_acts_where_the_vit_paper_has_it(image_folder, splits, tmp_path):
    model, _ = create_model(small(image_folder, tmp_path).replace(dropout=0.25).model, splits)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    where = {name for name, rate in rates.items() if rate == 0.25}
    block = {f"blocks.{i}.{place}" for i in range(2) for place in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")}
    assert where == {"pos_drop", *block}


def test_dropout_survives_a_conversion_and_is_refused_twice(image_folder, splits, tmp_path):
    shape = ("embed_dim=32", "depth=1", "num_heads=2", "patch_size=8")
    config = small(image_folder, tmp_path).replace(
        model="vit_tiny_patch16_224", model_kwargs=shape, attn="diff", dropout=0.1
    )
    model, _ = create_model(config.model, splits)
    assert model.blocks[0].attn.proj_drop.p == model.pos_drop.p == 0.1
    with pytest.raises(InputError, match=r"^`model_kwargs=proj_drop_rate=...` is an option of its own: pass `dropout`"):
        config.replace(model_kwargs=(*shape, "proj_drop_rate=0.1"))


def test_eval_only_tests_a_finished_run_and_changes_nothing(image_folder, tmp_path):
    first = train(small(image_folder, tmp_path), "recipe")
    again = small(image_folder, tmp_path).replace(
        model=f"local-dir:{tmp_path}/run/best", pretrained=True, img_size=(), model_kwargs=(),
        output=str(tmp_path / "tested"), eval_only=True
    )  # fmt: skip
    result = train(again, "recipe")
    assert {key: result[key] for key in ("test_accuracy", "lambda")} == {
        key: first[key] for key in ("test_accuracy", "lambda")
    }
    names = {path.name for path in (tmp_path / "tested").iterdir()}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "result.json", "predictions.png"}


def test_eval_only_of_a_head_that_never_learned_is_refused(image_folder, tmp_path):
    with pytest.raises(InputError, match=r"^`eval_only`: the head of `model=diffvit_tiny_patch16` would be random"):
        train(small(image_folder, tmp_path, eval_only=True), "recipe")
    assert not list(tmp_path.iterdir())


def test_a_push_that_a_kill_prevented_is_done_by_resume(image_folder, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(recipe, "check_repository", lambda *_: None)
    monkeypatch.setattr(recipe, "push_run", lambda run, *_, **__: pushed.append(run))
    first = train(small(image_folder, tmp_path), "recipe")
    again = small(image_folder, tmp_path, resume="auto", push_to_hub="me/net")
    assert train(again, "recipe")["test_accuracy"] == first["test_accuracy"]
    assert pushed == [tmp_path / "run"]


def test_a_dry_run_estimates_the_training_and_leaves_nothing_behind(image_folder, tmp_path, capsys):
    result = train(small(image_folder, tmp_path, dry_run=True, ema=0.9, checkpoint_every=0.1), "recipe")
    assert not list(tmp_path.iterdir())
    assert result["updates"] == 4
    assert 0 < result["seconds_an_update"] < result["expected_seconds"]
    assert 0.05 < result["peak_memory_gib"] < 64
    assert "Weights that were saved and loaded are the same to the bit" in capsys.readouterr().err


def test_a_dry_run_does_not_take_its_two_updates_for_the_whole_training(image_folder, tmp_path, capsys):
    train(small(image_folder, tmp_path, dry_run=True, warmup_epochs=0.5), "recipe")  # a warm-up of 2 of 4 updates
    said = capsys.readouterr().err
    assert "takes the whole training" not in said
    assert "2 updates, 4 per epoch" not in said
    assert "dry run: about 0 minutes = 4 updates x " in said


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [("none", {"stem", "blocks.0", "blocks.1", "head"}), ("0", {"blocks.0", "blocks.1", "head"}),
     ("1", {"blocks.1", "head"}), ("2", {"head"}), ("backbone", {"head"}), ("proj", {"blocks.0", "blocks.1", "head"})],
)  # fmt: skip
def test_freeze_names_the_weights_that_are_not_trained(image_folder, tmp_path, freeze, trained):
    from diffvit_timm.training.model import create_model

    model, _ = create_model(small(image_folder, tmp_path, freeze=freeze).model, load_splits(str(image_folder)))
    part = {"cls_token": "stem", "pos_embed": "stem", "patch_embed": "stem", "head": "head"}
    names = {
        part.get(name.split(".")[0], ".".join(name.split(".")[:2]))
        for name, p in model.named_parameters() if p.requires_grad and not name.startswith("norm.")
    }  # fmt: skip
    assert names == trained
    assert model.norm.weight.requires_grad == (freeze not in ("backbone", "proj"))  # it comes after the last block


def test_a_conversion_computes_on_the_device_of_the_training(image_folder, tmp_path, monkeypatch):
    from diffvit_timm.training import model as module

    def convert(source, config, attn, splits):
        devices.append(next(source.parameters()).device.type)
        return timm.create_model(name, depth=1, img_size=32)

    devices: list[str] = []
    monkeypatch.setattr(module, "_convert", convert)
    name = "deit_tiny_patch16_224"
    config = small(image_folder, tmp_path, attn="diff").replace(model=name, img_size=(32,), model_kwargs=("depth=1",))
    module.create_model(config.model, load_splits(str(image_folder)), report=False, device="meta")
    assert devices == ["meta"]


def test_a_conversion_that_does_not_fit_into_a_gpu_goes_on_on_the_cpu(monkeypatch, capsys):
    from diffvit_timm.training import model as module

    class Source:
        def __init__(self):
            self.devices = []

        def to(self, device):
            self.devices.append(device)

    def convert(source, config, attn, splits):
        if source.devices[-1] != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.nn.Identity()

    monkeypatch.setattr(module, "_convert", convert)
    source = Source()
    assert module._convert_on("cuda", source, None, "diff", None, measures=False)[1] is None
    assert source.devices == ["cuda", "cpu"]
    assert "the memory of cuda is too small for the conversion, which goes on on the CPU" in capsys.readouterr().err


def test_the_new_head_of_a_seed_is_the_same_after_every_conversion(image_folder, tmp_path):
    splits, heads = load_splits(str(image_folder)), []
    for attn, conversion in (("diff", "svd"), ("diff", "calibrated"), ("diff_v2", "mirror")):
        torch.manual_seed(5)
        config = small(image_folder, tmp_path, attn=attn, conversion=conversion)
        config = config.replace(model="deit_tiny_patch16_224", img_size=(32,), model_kwargs=("depth=1",))
        heads.append(create_model(config.model, splits)[0].head.weight)
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_every_process_gets_the_weights_of_the_first_one(monkeypatch):
    from types import SimpleNamespace

    from diffvit_timm.training import accelerator

    ours, first = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    with torch.no_grad():
        for tensor in (*first.parameters(), *first.buffers()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 2)
    sent = iter([*first.parameters(), *first.buffers()])
    monkeypatch.setattr(accelerator, "broadcast", lambda tensor: next(sent))
    one, two = (SimpleNamespace(num_processes=count, device="cpu") for count in (1, 2))
    accelerator.share_weights(one, ours)
    assert not torch.equal(ours.weight, first.weight)
    accelerator.share_weights(two, ours)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), first.state_dict().values(), strict=True))


def test_only_the_output_projections_and_the_head_are_trained(image_folder, tmp_path):
    from diffvit_timm.training.model import create_model

    splits = load_splits(str(image_folder))
    for attn in ("plain", "diff", "diff_v2"):
        model, _ = create_model(small(image_folder, tmp_path, freeze="proj", attn=attn).model, splits)
        trained = {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head.")}
        assert trained == {f"blocks.{i}.attn.proj.{part}" for i in range(2) for part in ("weight", "bias")}
    with pytest.raises(InputError, match=r"^`freeze=proj` does not apply to `model=diffvit_tiny_patch16`"):
        create_model(small(image_folder, tmp_path, freeze="proj", attn="dna").model, splits)


def test_few_images_of_every_class_are_drawn_by_the_sample_seed(image_folder, tmp_path):
    results = [
        train(small(image_folder, tmp_path / str(n), samples_per_class=4, sample_seed=seed), "recipe")
        for n, seed in enumerate((0, 0, 1))
    ]
    assert [result["train_images"] for result in results] == [12, 12, 12]
    drawn = [result["fingerprints"]["train"] for result in results]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({result["fingerprints"]["test"] for result in results}) == 1


def test_a_frozen_backbone_leaves_both_heads_of_a_distilled_model(image_folder, tmp_path):
    from diffvit_timm.training.model import create_model

    config = small(image_folder, tmp_path, freeze="backbone").replace(
        model="deit_tiny_distilled_patch16_224", img_size=(32,), model_kwargs=("depth=1",)
    )
    model, _ = create_model(config.model, load_splits(str(image_folder)))
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"head", "head_dist"}


def test_more_frozen_blocks_than_there_are_is_refused(image_folder, tmp_path):
    with pytest.raises(InputError, match=r"^`freeze=3`: `model=diffvit_tiny_patch16` has only 2 blocks"):
        train(small(image_folder, tmp_path, freeze="3"), "recipe")


def test_gradient_checkpointing_trains_the_same_weights(image_folder, tmp_path):
    weights = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        train(small(image_folder, folder, grad_checkpointing=checkpointing), "recipe")
        weights.append(timm.create_model(f"local-dir:{folder}/run/best", pretrained=True).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
