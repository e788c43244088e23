"""The training loop, run for real on 36 small images: its folder, its arithmetic, and how it stops."""

import functools
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image

from diffvit_timm.data.images import ImageDataset
from diffvit_timm.errors import InputError
from diffvit_timm.inspection.statistics import layer_statistics
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.optim import warmup_cosine
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")


@pytest.fixture
def config(image_folder):
    """Function: options -> the configuration of a short training."""
    short = dict(epochs=2, batch_size=8, lr=2e-3, layer_decay=1.0, augment="none", workers=0, log_every=1)
    return lambda **options: TrainConfig.from_flat(str(image_folder), "tiny", **{**short, **options})


@pytest.fixture
def trainer(config, splits, tiny_model, tmp_path):
    """Function: options -> a Trainer. `shape` has arguments of the model, and every run has its own folder."""

    numbers = itertools.count()

    def make(shape=None, teacher=None, **options):
        output = tmp_path / f"run{next(numbers)}"
        cfg = config(**options, teacher="the one that is given" if teacher else None)
        return Trainer(
            cfg,
            make_accelerator(cfg.run, output, cfg.optim.ema),
            tiny_model(**(shape or {})),
            splits,
            output,
            None,
            teacher,
        )

    return make


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def weights_after(trainer):
    """Return the state dict after the last epoch, before the best weights are loaded for the test."""
    for epoch in range(trainer.config.optim.epochs):
        trainer._train_epoch(epoch)
    return {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}


def predictions_outside(path, split):
    """Test a saved model with timm and PIL only, one image at a time: whether each is right, and its confidence."""
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
    with torch.inference_mode():
        images = (transform(Image.open(row["image"]["path"]).convert("RGB"))[None] for row in split)
        shares = torch.cat([model(image).double().softmax(-1) for image in images]).numpy()
    return shares.argmax(-1) == np.array(split["label"]), shares.max(-1)


def accuracy_outside(path, split):
    return predictions_outside(path, split)[0].mean()


def test_a_run_leaves_a_complete_folder(trainer, splits):
    run = trainer(epochs=6, lambda_warmup=1.0)
    result = run.fit()
    names = {path.name for path in run.output.iterdir()}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "best", "checkpoints", "result.json"}
    assert names == files | {"training.png", "predictions.png"}
    assert {path.name for path in (run.output / "best").iterdir()} == {"model.safetensors", "config.json", "SHA256SUMS"}
    assert yaml.safe_load((run.output / "config.yaml").read_text())["epochs"] == 6
    assert json.loads((run.output / "result.json").read_text()) == json.loads(json.dumps(result))
    with Image.open(run.output / "training.png") as picture:
        assert picture.format == "PNG"

    expected = {
        "test_accuracy", "test_interval_95", "test_mean_per_class", "test_images", "test_split", "val_accuracy",
        "epochs", "seconds", "images_per_second", "model", "attn", "seed", "conversion", "lambda",
    }  # fmt: skip
    assert set(result) >= expected
    assert result["test_images"] == len(splits.test)
    assert result["epochs"] == 6
    assert result["model"] == "tiny"
    assert result["attn"] == "diff"
    assert result["conversion"] is None
    assert len(result["lambda"]) == len(result["negative_mass"]) == 2
    assert result["images_per_second"] > 0
    assert result["test_accuracy"] > 0.6  # it learned: chance is a third


def test_the_accuracies_are_those_of_the_saved_best_epoch_measured_independently(trainer, splits):
    run = trainer(epochs=4, lambda_warmup=2.0)
    # The head is lost from the third epoch on, so the best epoch is neither the first nor the last.
    run.learner.optimizer.optimizer.register_step_post_hook(
        lambda *_: run.state.step >= 8 and run.learner.model.head.weight.data.zero_()
    )
    result = run.fit()
    accuracies = [row["val_accuracy"] for row in rows_of(run.output) if "val_accuracy" in row]
    assert accuracies[0] < accuracies[1] > accuracies[3]
    assert result["val_accuracy"] == accuracies[1]
    assert accuracy_outside(run.output / "best", splits.val) == accuracies[1]
    assert accuracy_outside(run.output / "best", splits.test) == pytest.approx(result["test_accuracy"])


def test_the_calibration_error_on_the_test_images_is_that_of_the_saved_model(trainer, splits):
    run = trainer(epochs=2)
    result = run.fit()
    right, confidences = predictions_outside(run.output / "best", splits.test)
    bins = [(confidences > low / 15) & (confidences <= (low + 1) / 15) for low in range(15)]
    gaps = [chosen.mean() * abs(right[chosen].mean() - confidences[chosen].mean()) for chosen in bins if chosen.any()]
    assert result["test_calibration_error"] == pytest.approx(sum(gaps), abs=1e-6)


def test_a_teacher_replaces_the_labels_by_its_weight(trainer, tiny_model):
    losses = {}
    for weight in (0.25, 1.0):
        run = trainer(teacher=tiny_model().eval(), distill_weight=weight, epochs=1, label_smoothing=0.0)
        run.fit()
        losses[weight] = rows_of(run.output)[0]["train_loss"]
    plain = trainer(epochs=1, label_smoothing=0.0)
    plain.fit()
    assert losses[1.0] == pytest.approx(0.0, abs=1e-6)  # the student starts as its teacher
    assert losses[0.25] == pytest.approx(0.75 * rows_of(plain.output)[0]["train_loss"], rel=1e-5)


def test_a_warm_up_of_lambda_is_refused_if_lambda_is_learned_per_token(trainer):
    with pytest.raises(InputError, match="`lambda_warmup` needs `attn=diff`"):
        trainer(shape=dict(attn="diff_v2"), lambda_warmup=1.0)


def test_best_reloads_through_timm_with_equal_logits(trainer):
    run = trainer(lambda_warmup=1.0)
    run.fit()
    loaded = timm.create_model(f"local-dir:{run.output}/best", pretrained=True).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(images), run.learner.model.eval()(images))
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]
    assert layer_statistics(loaded, images) == layer_statistics(run.learner.model, images)


def test_metrics_have_a_row_every_log_every_updates_and_one_per_epoch(trainer):
    run = trainer(log_every=3)
    run.fit()
    updates = [row for row in rows_of(run.output) if "train_loss" in row]
    epochs = [row for row in rows_of(run.output) if "val_accuracy" in row]
    # 4 updates per epoch: every third one, and the last of each epoch
    assert [(row["step"], row["epoch"]) for row in updates] == [(3, 0.75), (4, 1.0), (6, 1.5), (8, 2.0)]
    assert [row["epoch"] for row in epochs] == [1.0, 2.0]
    assert all(len(row["lambda"]) == 2 and np.isfinite(row["val_loss"]) for row in epochs)
    assert run.state.step == 8


def test_validations_within_an_epoch_are_logged_and_do_not_change_the_training(trainer):
    shape = {"drop_path_rate": 0.5}
    runs = [trainer(shape=shape, epochs=2, val_every=every, log_every=1) for every in (0, 2)]
    for run in runs:
        run.fit()
    without, more = (rows_of(run.output) for run in runs)
    assert [row["epoch"] for row in more if "val_loss" in row] == [0.5, 1.0, 1.5, 2.0]  # an epoch has 4 updates
    assert [row for row in more if "val_loss" not in row or "lambda" in row] == without


def test_a_row_is_the_mean_loss_since_the_last_one(trainer):
    each, some = trainer(log_every=1, epochs=1), trainer(log_every=2, epochs=1)
    each.fit(), some.fit()
    losses = [row["train_loss"] for row in rows_of(each.output) if "train_loss" in row]
    means = [row["train_loss"] for row in rows_of(some.output) if "train_loss" in row]
    assert means == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2])


def test_the_learning_rate_warms_up_and_ends_at_zero(trainer):
    run = trainer(warmup_epochs=0.5)
    used = []
    run.learner.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    run.fit()
    assert used == pytest.approx([2e-3 * warmup_cosine(step, 2, 8) for step in range(8)])
    assert run.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(trainer):
    options = dict(augment="crop+flip+erase", mixup=0.8, cutmix=1.0, drop_path=0.1)
    runs = [trainer(shape={"drop_path_rate": 0.1}, seed=seed, **options) for seed in (0, 0, 1)]
    results = [run.fit() for run in runs]
    first, again, other = (run.learner.model.state_dict() for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert rows_of(runs[0].output) == rows_of(runs[1].output)
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def test_workers_do_not_change_the_training(trainer):
    alone, helped = (weights_after(trainer(augment="crop+flip+color", workers=workers, epochs=2)) for workers in (0, 2))
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


# A key bias cannot change a softmax: its gradient is rounding noise, which AdamW turns into full steps.
BIASLESS = {"qkv_bias": False}


@pytest.mark.parametrize("grad_accum", [2, 4, 9])
def test_accumulation_steps_do_not_change_the_update(trainer, grad_accum):
    # 32 images in batches of 9: the last has 5, which 2 and 4 do not divide and 9 exceeds
    options = dict(batch_size=9, lr=1e-3, epochs=1)
    whole = weights_after(trainer(BIASLESS, **options))
    cut = weights_after(trainer(BIASLESS, grad_accum=grad_accum, **options))
    start = trainer(BIASLESS, **options).learner.model.state_dict()
    for name, tensor in whole.items():
        assert (cut[name] - tensor).abs().max() < 1e-5, name
    assert max((whole[name] - start[name]).abs().max() for name in whole) > 1e-3


def test_accumulation_steps_report_the_loss_of_the_whole_batch(trainer):
    losses = []
    for grad_accum in (1, 4):
        run = trainer(BIASLESS, batch_size=9, epochs=1, grad_accum=grad_accum)
        run.fit()
        losses.append([row["train_loss"] for row in rows_of(run.output) if "train_loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_lambda_warms_up_to_its_target_and_is_logged(trainer):
    run = trainer(epochs=4, lambda_warmup=2.0, lambda_target=0.3)
    values = []
    run.learner.optimizer.optimizer.register_step_pre_hook(
        lambda *_: values.append([layer.lambda_init.item() for layer in run.learner.model.differential_layers()])
    )
    run.fit()
    expected = [0.05 + 0.25 * min(1, step / 8) for step in range(1, 17)]
    assert values == [pytest.approx([value] * 2) for value in expected]
    logged = [row["lambda"] for row in rows_of(run.output) if "lambda" in row]
    # the learned part of lambda, exp(lq1.lk1) - exp(lq2.lk2), starts random and moves little
    assert len(logged) == 4
    for before, after in zip(logged[0], logged[-1], strict=True):
        assert after - before == pytest.approx(expected[-1] - expected[3], abs=0.05)


def test_a_lambda_warm_up_as_long_as_the_training_ends_within_one_update_of_its_target(trainer):
    run = trainer(epochs=2, lambda_warmup=2.0, lambda_target=0.3)
    weights_after(run)
    for layer in run.learner.model.differential_layers():
        assert 0.3 - 0.25 / 8 - 1e-6 < layer.lambda_init.item() < 0.3 + 1e-6


def test_without_a_warm_up_lambda_init_stays(trainer):
    run = trainer(shape={"lambda_init": 0.1})
    run.fit()
    assert [layer.lambda_init.item() for layer in run.learner.model.differential_layers()] == pytest.approx([0.1, 0.1])


def test_the_plain_twin_takes_the_same_options_and_has_no_lambda(trainer):
    run = trainer(shape={"attn": "plain"}, lambda_warmup=1.0)
    result = run.fit()
    assert result["lambda"] == []
    assert result["attn"] == "plain"
    assert all(row["lambda"] == [] for row in rows_of(run.output) if "lambda" in row)


def test_any_timm_model_trains(config, splits, tmp_path):
    model = timm.create_model("test_resnet", num_classes=3)
    cfg = config(epochs=1)
    result = Trainer(cfg, make_accelerator(cfg.run, tmp_path, cfg.optim.ema), model, splits, tmp_path / "run").fit()
    assert result["lambda"] == []
    assert result["test_images"] == 18


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_images_mixes_their_labels(trainer, options):
    run = trainer(epochs=1, **options)
    seen = []
    run.learner.model.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]) if run.learner.model.training else None
    )
    originals = [image for batch, _ in run.batches.of_epoch(0) for image in batch]
    result = run.fit()
    assert not any(torch.equal(image, original) for image in seen[0] for original in originals)
    assert np.isfinite(result["test_accuracy"])
    losses = [row["train_loss"] for row in rows_of(run.output) if "train_loss" in row]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


def test_label_smoothing_and_clipping_reach_the_update(trainer):
    def norm_and_loss(**options):
        run = trainer(epochs=1, **options)
        norms = []
        run.learner.optimizer.optimizer.register_step_pre_hook(
            lambda *_: norms.append(
                torch.nn.utils.get_total_norm([p.grad for p in run.learner.model.parameters()]).item()
            )
        )
        run.fit()
        return norms[0], next(row["train_loss"] for row in rows_of(run.output))

    free, loss = norm_and_loss(clip_grad=0.0, label_smoothing=0.0)
    clipped, smoothed = norm_and_loss(clip_grad=0.01, label_smoothing=0.9)
    assert free > 0.1
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert smoothed != pytest.approx(loss)


def test_every_test_image_is_read_once_and_after_the_training(trainer, splits, monkeypatch):
    reads = []
    read = ImageDataset.__getitem__

    def recorded(self, index):
        reads.append((len(self.split), index))
        return read(self, index)

    monkeypatch.setattr(ImageDataset, "__getitem__", recorded)
    trainer(epochs=3).fit()
    assert sorted(index for size, index in reads if size == len(splits.test)) == list(range(18))
    assert [size for size, _ in reads[-18:]] == [18] * 18
    assert sorted(index for size, index in reads if size == len(splits.train)) == sorted(3 * list(range(32)))


def test_drop_path_is_on_in_training_and_off_in_evaluation(trainer):
    run = trainer(batch_size=18)
    modes = []
    run.learner.model.register_forward_pre_hook(lambda *_: modes.append(run.learner.model.training))
    run.fit()
    # 2 updates and 1 validation batch per epoch, 1 test batch, 1 batch of the picture of predictions
    assert modes == [True, True, False, True, True, False, False, False]


def test_each_epoch_trains_in_a_new_order_and_with_new_crops(trainer):
    run = trainer(augment="crop+flip")
    first, second = [], []
    for epoch, images in enumerate((first, second)):
        images += [image for batch, _ in run.batches.of_epoch(epoch) for image in batch]
    assert not any(torch.equal(a, b) for a in first for b in second)
    labels = []
    for epoch in (0, 1, 0):
        labels.append(torch.cat([batch for _, batch in run.batches.of_epoch(epoch)]).tolist())
    assert labels[0] == labels[2] != labels[1]


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_loss_that_is_not_a_number_stops_the_run_at_its_first_bad_update(trainer, log_every):
    run = trainer(log_every=log_every)
    first = run.learner.optimizer.optimizer.register_step_post_hook(
        lambda *_: run.state.step == 1 and run.learner.model.head.bias.data.fill_(np.nan)
    )
    with pytest.raises(InputError) as caught:
        run.fit()
    first.remove()
    assert str(caught.value).startswith("the loss is nan at update 3")
    assert "`lr=0.002`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run.output / "best").exists()
    assert not (run.output / "result.json").exists()


def test_an_absurd_learning_rate_stops_the_run(trainer):
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at update \d+: lower `lr=1e\+09`"):
        trainer(lr=1e9, warmup_epochs=0.0).fit()


def test_weights_that_broke_at_the_last_update_give_no_result(trainer):
    run = trainer(epochs=1)
    run.learner.optimizer.optimizer.register_step_post_hook(
        lambda *_: run.state.step == 3 and run.learner.model.head.bias.data.fill_(np.nan)
    )
    with pytest.raises(InputError):
        run.fit()


def test_bf16_trains_and_says_so(trainer, capsys):
    trainer(epochs=1).fit()
    assert "precision no" in capsys.readouterr().err
    result = trainer(precision="bf16", epochs=1).fit()
    assert "precision bf16" in capsys.readouterr().err
    assert 0 <= result["test_accuracy"] <= 1


def test_the_announcement_says_what_was_derived(trainer, capsys):
    trainer(epochs=2, batch_size=9, grad_accum=3).fit()
    plan = capsys.readouterr().err
    for fact in (
        "32 train, 4 val, 18 test images, 3 classes", "8 updates, 4 per epoch, of 9 images", "accumulation steps: 3"
    ):  # fmt: skip
        assert fact in plan
    assert "epoch 2/2  val " in plan


WARM_UP = "the warm-up of 2 epochs takes the whole training, which never reaches the learning rate 0.002"


@pytest.mark.parametrize(("epochs", "max_steps", "warned"), [(1, 0, True), (2, 0, True), (3, 0, False), (9, 5, True)])
def test_a_warm_up_that_takes_the_whole_training_is_warned_about_when_it_starts(
    trainer, capsys, epochs, max_steps, warned
):
    run = trainer(epochs=epochs, max_steps=max_steps, warmup_epochs=2.0)
    assert WARM_UP not in capsys.readouterr().err
    run._announce()
    assert (WARM_UP in capsys.readouterr().err) == warned


def test_fit_announces_a_training_before_its_first_update(trainer, capsys):
    run = trainer(epochs=1, warmup_epochs=2.0)
    said = []
    run.learner.model.register_forward_pre_hook(lambda *_: said.append(capsys.readouterr().err))
    run.fit()
    assert f"{WARM_UP}: lower warmup_epochs\n" in said[0]
    assert not any(WARM_UP in text for text in said[1:])


def test_a_precision_that_this_machine_lacks_is_refused(config):
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"^`precision=fp16` needs a GPU"):
            make_accelerator(config(precision="fp16").run, Path("run"))


def test_a_launch_file_with_unsupported_sharding_is_refused_before_anything_loads(config, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(InputError, match=r"^the launch file asks for FSDP.*fsdp2\.yaml"):
        make_accelerator(config().run, Path("run"))


def test_a_grey_model_trains_on_grey_images(trainer):
    run = trainer(shape={"in_chans": 1}, augment="crop+flip+erase", epochs=1)
    assert next(run.batches.of_epoch(0))[0].shape == (8, 1, 16, 16)
    assert run.fit()["test_images"] == 18


def test_the_average_of_the_weights_follows_its_formula(trainer):
    run = trainer(epochs=2, ema=0.6)
    names = [name for name, _ in run.learner.net.named_parameters()]
    average = {}

    def follow(optimizer, *_):
        step = run.state.step + 1
        decay = 0.0 if step < 2 else min(0.6, 1 - step ** (-2 / 3))  # timm's warm-up
        for name, p in run.learner.net.named_parameters():
            average[name] = p.detach().clone() if step == 1 else decay * average[name] + (1 - decay) * p.detach()

    run.learner.optimizer.optimizer.register_step_post_hook(follow)
    weights_after(run)
    kept = dict(run.learner.ema.module.named_parameters())
    assert all(torch.allclose(kept[name], average[name], atol=1e-6) for name in names)
    assert not torch.allclose(kept["head.weight"], run.learner.net.head.weight)


def test_the_average_is_evaluated_and_saved(trainer, splits):
    run = trainer(epochs=2, ema=0.6)
    result = run.fit()
    assert accuracy_outside(run.output / "best", splits.test) == result["test_accuracy"]
    saved = timm.create_model(f"local-dir:{run.output}/best", pretrained=True).state_dict()
    assert not torch.equal(saved["head.weight"], run.learner.net.head.weight)


def test_the_average_has_the_lambda_of_a_warmed_up_schedule(trainer):
    run = trainer(shape={"lambda_init": "schedule"}, ema=0.5, lambda_warmup=1.0, lambda_target=0.3)
    run.fit()
    for layer in run.learner.ema.module.differential_layers():
        assert layer.lambda_init.item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("steps", "epochs"), [(3, 1), (6, 2)])
def test_max_steps_ends_the_training_and_its_learning_rate_there(trainer, steps, epochs):
    run = trainer(max_steps=steps, epochs=9)
    result = run.fit()
    assert (result["updates"], result["epochs"]) == (steps, epochs)
    assert run.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0)
    rows = rows_of(run.output)
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(1, steps + 1))
    validated = [row["epoch"] for row in rows if "val_accuracy" in row]
    assert len(validated) == epochs
    assert validated[-1] == pytest.approx(steps / run.updates_per_epoch) == rows[-2]["epoch"]


def test_patience_ends_a_training_that_does_not_improve(trainer, capsys):
    run = trainer(epochs=9, lr=1e-30, patience=2)
    assert run.fit()["epochs"] == 3
    assert "the last 2 epochs were not better: the training stops early" in capsys.readouterr().err


def test_repeated_augmentation_draws_fewer_images_more_often(trainer):
    run = trainer(augment="crop+flip", repeated_augmentation=4, epochs=2)
    seen = []
    for epoch in (0, 1):
        seen.append(torch.cat([labels for _, labels in run.batches.of_epoch(epoch)]))
    assert [len(labels) for labels in seen] == [32, 32]
    assert all((labels.view(8, 4) == labels.view(8, 4)[:, :1]).all() for labels in seen)
    assert not torch.equal(*seen)
    run.fit()


def test_a_frozen_backbone_keeps_its_weights_and_stays_in_evaluation_mode(trainer):
    run = trainer(shape={"drop_path_rate": 0.5})
    run.learner.net.requires_grad_(False)
    run.learner.net.head.requires_grad_(True)
    run = Trainer(run.config, run.accelerator, run.learner.net, run.splits, run.output)
    before = {name: tensor.clone() for name, tensor in run.learner.net.state_dict().items()}
    modes = []
    run.learner.net.blocks[1].register_forward_pre_hook(lambda block, _: modes.append(block.training))
    after = weights_after(run)
    assert not any(modes)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_model_trains_to_the_same_weights(trainer):
    options = dict(epochs=1, max_steps=2, lr=1e-3, seed=1)
    shape = BIASLESS | {"depth": 1}  # the compiler takes seconds for each layer
    plain, compiled = (trainer(shape, compile=compile, **options) for compile in (False, True))
    one, other = weights_after(plain), weights_after(compiled)
    assert compiled.learner.net._compiled_call_impl is not None
    differences = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    # A few gradients are about as small as AdamW's eps, so that their rounding, which depends on the processor, becomes
    # a step of up to 2e-5.
    assert differences.quantile(0.999) < 1e-6
    assert differences.max() < 1e-4


PROCESSES = """
import json, sys
import timm, torch
import diffvit_timm
from pathlib import Path
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.trainer import Trainer
from diffvit_timm.training.accelerator import make_accelerator

folder, output, batch_size = sys.argv[1:]
config = TrainConfig.from_flat(
    folder, "tiny", epochs=2, batch_size=int(batch_size), augment="crop+flip", workers=0, log_every=1, grad_accum=2,
    ema=0.9, lr=1e-3, crop_scale=0.35, model_kwargs=("qkv_bias=False",)
)
accelerator = make_accelerator(config.run, Path(output), config.optim.ema)
splits = load_splits(folder)
torch.manual_seed(0)
model = timm.create_model(
    "diffvit_tiny_patch16", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3,
    qkv_bias=False
)
reads, read = [], ImageDataset.__getitem__

def recorded(self, index):
    image, label = read(self, index)
    reads.append((len(self.split), index, image.double().sum().item()))
    return image, label

ImageDataset.__getitem__ = recorded
trainer = Trainer(config, accelerator, model, splits, Path(output))
result = trainer.fit()
weights = torch.cat([p.flatten() for p in model.parameters()]).tolist()
average = torch.cat([p.flatten() for p in trainer.learner.ema.module.parameters()]).tolist()
row = dict(result=result, reads=reads, weights=weights, average=average, processes=accelerator.num_processes)
Path(output, f"rank{accelerator.process_index}.json").write_text(json.dumps(row))
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def ranks(image_folder, tmp_path_factory, on_ranks):
    """Function: number of processes -> the reports of each, of the same training with 8 images per update."""

    @functools.cache
    def run(processes):
        folder = tmp_path_factory.mktemp("ranks")
        on_ranks(processes, PROCESSES, image_folder, folder / "run", 8 // processes)
        reports = [json.loads((folder / "run" / f"rank{rank}.json").read_text()) for rank in range(processes)]
        return reports, rows_of(folder / "run")

    return run


def test_two_processes_share_the_work_and_see_new_crops_each_epoch(ranks):
    (first, second), rows = ranks(2)
    assert first["processes"] == second["processes"] == 2
    assert first["weights"] == second["weights"]
    assert first["average"] == second["average"]
    assert first["result"]["test_accuracy"] == second["result"]["test_accuracy"]
    assert first["result"]["test_images"] == 18

    train_reads = [[(i, image) for size, i, image in rank["reads"] if size == 32] for rank in (first, second)]
    assert [len(reads) for reads in train_reads] == [32, 32]
    for epoch in (0, 1):  # each process reads half of the images, none of them twice
        seen = [i for reads in train_reads for i, _ in reads[16 * epoch : 16 * (epoch + 1)]]
        assert sorted(seen) == list(range(32))
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(1, 9))

    shown = {i: [image for reads in train_reads for j, image in reads if i == j] for i in range(32)}
    repeated = [i for i, (once, again) in shown.items() if once == again]
    assert not repeated, "the second epoch repeats the augmentation of the first one"


def test_two_processes_and_one_train_the_same_at_the_same_global_batch(ranks):
    (alone,), rows = ranks(1)
    (first, _), shared_rows = ranks(2)
    for row, shared in zip(rows, shared_rows, strict=True):
        assert row == pytest.approx(shared, rel=1e-4) if "lambda" not in row else row["epoch"] == shared["epoch"]
    for name in ("weights", "average"):
        assert np.abs(np.subtract(alone[name], first[name])).max() < 2e-5
    assert alone["result"]["test_accuracy"] == first["result"]["test_accuracy"]
    crops = [sorted((i, image) for size, i, image in [*one["reads"], *more] if size == 32)
             for one, more in ((alone, []), (first, ranks(2)[0][1]["reads"]))]  # fmt: skip
    assert crops[0] == crops[1]
