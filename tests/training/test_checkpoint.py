"""A run that was stopped anywhere continues to the same weights and metrics, bit by bit, or says why it cannot."""

import dataclasses
import errno
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from diffvit_timm.data.datasets import load_splits
from diffvit_timm.errors import InputError
from diffvit_timm.training import checkpoint as checkpoint_module
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.checkpoint import Checkpoints, load_checkpoint
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.run_folder import RunFolder, open_run
from diffvit_timm.training.signals import StopSignal
from diffvit_timm.training.state import TrainState
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

# Everything that is random or has a state: mixup, drop path, augmentation, lambda warm-up, averaged weights, the size
# of the images. An epoch has 4 updates.
OPTIONS = dict(
    epochs=3, batch_size=8, lr=2e-3, layer_decay=1.0, augment="crop+flip+color", workers=0, log_every=3, mixup=0.4,
    cutmix=0.5, lambda_warmup=2.0, checkpoint_every=0.25, ema=0.9,
    progressive_sizes=(8,),
)  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def start_in(image_folder, splits, tiny_model):
    """Function: folder, options -> a Trainer."""

    def make(folder, **options):
        config = TrainConfig.from_flat(str(image_folder), "tiny", output=str(folder), **{**OPTIONS, **options})
        model = tiny_model(drop_path_rate=0.3, dynamic_img_size=True)
        return Trainer(config, make_accelerator(config.run, folder, config.optim.ema), model, splits, folder)

    return make


@pytest.fixture
def start(start_in, tmp_path):
    """Function: folder name, options -> a Trainer."""
    return lambda name, **options: start_in(tmp_path / name, **options)


@pytest.fixture(scope="module")
def whole(start_in, tmp_path_factory):
    """The outcome of a run that nothing stopped."""
    run = start_in(tmp_path_factory.mktemp("whole"))
    run.fit()
    return outcome(run.output)


def outcome(folder):
    result = json.loads((folder / "result.json").read_text())
    timeless = {key: value for key, value in result.items() if "second" not in key}
    return load_file(folder / "best" / "model.safetensors"), (folder / "metrics.jsonl").read_text(), timeless


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0] | other[0])


def resolved(config):
    """Return the run folder and the checkpoint that a run with these options finds."""
    with open_run(config, "recipe") as found:
        return found


def kill_after(run, updates):
    """Stop a run as a kill does: after this many updates, before the row and the checkpoint of the last one."""
    update = run.learner.update

    def counted(images, labels, step):
        if step == updates:
            raise Killed
        return update(images, labels, step)

    run.learner.update = counted
    with pytest.raises(Killed):
        run.fit()


@pytest.mark.parametrize("updates", [1, 3, 4, 6, 11])
def test_a_killed_run_continues_to_the_same_weights_and_metrics(updates, start, whole):
    kill_after(start("killed"), updates)
    again = start("killed", resume="auto")
    output, checkpoint = resolved(again.config)
    assert checkpoint == Checkpoints(output).complete()[-1]
    again.fit(checkpoint)
    assert_same(outcome(output), whole)


def test_worker_processes_change_nothing_of_a_resume(start, whole):
    kill_after(start("killed", workers=2), 6)
    again = start("killed", workers=1)
    again.fit(Checkpoints(again.output).complete()[-1])
    assert_same(outcome(again.output), whole)


def test_a_streamed_run_continues_where_the_stream_was(stream_folder, tiny_model, tmp_path):
    splits = load_splits(str(stream_folder), stream=20)

    def make(name):
        config = TrainConfig.from_flat(str(stream_folder), "tiny", stream=20, **OPTIONS)
        return Trainer(
            config,
            make_accelerator(config.run, tmp_path / name, config.optim.ema),
            tiny_model(dynamic_img_size=True),
            splits,
            tmp_path / name,
        )

    run = make("whole")
    result = run.fit()
    assert (result["updates"], result["epochs"], result["train_images"]) == (6, 3, 20)
    kill_after(make("killed"), 3)
    again = make("killed")
    again.fit(Checkpoints(again.output).complete()[-1])
    assert_same(outcome(again.output), outcome(run.output))


def test_a_stream_without_a_batch_for_every_process_is_refused(stream_folder, tiny_model, tmp_path, monkeypatch):
    config = TrainConfig.from_flat(str(stream_folder), "tiny", stream=20, **OPTIONS)
    accelerator = make_accelerator(config.run, tmp_path, config.optim.ema)
    monkeypatch.setattr(type(accelerator), "num_processes", 3)
    message = f"`stream=20` is less than `batch_size={config.optim.batch_size}` on each of 3 processes"
    with pytest.raises(InputError, match=message):
        Trainer(
            config, accelerator, tiny_model(dynamic_img_size=True), load_splits(str(stream_folder), stream=20), tmp_path
        )


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal().listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != before
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def default_signals():
    """Default actions of the signals: nohup ignores SIGHUP, and a training leaves an ignored signal ignored."""
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    }
    yield
    for number, action in before.items():
        signal.signal(number, action)


# In an epoch, and between its last update and its evaluation.
@pytest.mark.parametrize(("number", "updates"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 4), (signal.SIGHUP, 2)])
@pytest.mark.usefixtures("default_signals")
def test_a_signal_writes_a_checkpoint_and_ends_the_run(number, updates, start, whole):
    run = start("stopped", checkpoint_every=0.0)
    run.learner.optimizer.optimizer.register_step_post_hook(
        lambda *_: os.kill(os.getpid(), number) if run.state.step == updates - 1 else None
    )
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run.fit()
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    (checkpoint,) = Checkpoints(run.output).complete()
    assert load_checkpoint(checkpoint)[1]["state"]["step"] == updates
    again = start("stopped", checkpoint_every=0.0)
    again.fit(checkpoint)
    assert_same(outcome(again.output), whole)


@pytest.mark.parametrize(("label", "every"), [("val 3", 0.25), ("test", 0.0)])
def test_a_signal_in_the_last_evaluations_writes_a_checkpoint_that_needs_no_more_training(
    label, every, start, whole, monkeypatch
):
    run = start("stopped", checkpoint_every=every)
    evaluate = run.evaluate

    def signalled(loader, given):
        if given == label:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(loader, given)

    monkeypatch.setattr(run, "evaluate", signalled)
    with pytest.raises(SystemExit):
        run.fit()
    assert not (run.output / "result.json").exists()
    again = start("stopped", checkpoint_every=every)
    monkeypatch.setattr(again.learner, "update", None)
    again.fit(Checkpoints(run.output).complete()[-1])
    assert_same(outcome(again.output), whole)


def test_continuing_from_an_older_checkpoint_removes_the_newer_ones(start, whole):
    kill_after(start("killed", keep_checkpoints=9), 11)
    older, newest = (Checkpoints(start("killed").output).complete()[place] for place in (3, -1))
    run = start("killed", keep_checkpoints=9)
    run.learner.update = None
    with pytest.raises(TypeError):  # killed at once
        run.fit(older)
    assert newest not in Checkpoints(run.output).complete()
    run = start("killed", keep_checkpoints=9)
    run.fit(Checkpoints(run.output).complete()[-1])
    assert_same(outcome(run.output), whole)


def test_a_run_without_signals_or_kills_keeps_the_newest_checkpoints(start):
    run = start("run", keep_checkpoints=2)
    run.fit()
    names = [path.name for path in (run.output / "checkpoints").iterdir()]
    assert sorted(names) == ["epoch-00002-step-000000011", "epoch-00003-step-000000012"]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_previous_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.save(0, 1, {"w": torch.ones(2)}, {"step": 1})
    monkeypatch.setattr(checkpoint_module.torch, "save", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        checkpoints.save(0, 2, {"w": torch.ones(2)}, {"step": 2})
    monkeypatch.undo()
    assert checkpoints.complete() == [first]
    assert len(list(checkpoints.folder.iterdir())) == 2  # with what was begun
    last = checkpoints.save(0, 3, {"w": torch.ones(2)}, {"step": 3})
    assert list(checkpoints.folder.iterdir()) == [last]
    assert load_checkpoint(last)[1] == {"step": 3}


def test_a_full_disk_is_one_error_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.save(0, 1, {"w": torch.ones(2)}, {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(InputError, match=rf"update 2 cannot be written .*No space left.*`resume={first}`"):
        checkpoints.save(0, 2, {"w": torch.ones(2)}, {"step": 2})
    assert list(checkpoints.folder.iterdir()) == [first]


def test_a_broken_checkpoint_is_one_error(tmp_path):
    path = Checkpoints(tmp_path).save(0, 1, {"w": torch.ones(2)}, {"step": 1})
    (path / "state.pt").write_bytes(b"half")
    with pytest.raises(
        InputError,
        match=f"`resume={path}` cannot be used: state.pt is damaged.*; start a new run with another `output`",
    ):
        load_checkpoint(path)


def test_a_checkpoint_of_other_data_is_refused_with_the_difference(start, splits):
    kill_after(start("killed"), 3)
    again = start("killed")
    again.splits = dataclasses.replace(splits, class_names=["cat", "dog", "yak"])
    with pytest.raises(InputError, match=r"'owl'\] there, .*'yak'\] here"):
        again.fit(Checkpoints(again.output).complete()[-1])


@pytest.fixture
def run_folder(tmp_path):
    """Function: options -> a run folder with these options, and its checkpoint."""

    def make(**options):
        config = TrainConfig.from_flat("data", "model", **options)
        RunFolder(tmp_path / "run", config)
        return tmp_path / "run", Checkpoints(tmp_path / "run").save(1, 5, {"w": torch.ones(1)}, {})

    return make


def test_resume_takes_a_run_or_one_of_its_checkpoints_or_finds_the_newest_one(run_folder):
    folder, checkpoint = run_folder()
    for resume, output in ((str(folder), "auto"), (str(checkpoint), "auto"), ("auto", str(folder))):
        config = TrainConfig.from_flat("data", "model", resume=resume, output=output, workers=7)
        assert resolved(config) == (folder, checkpoint)


def test_a_run_may_be_in_a_folder_called_checkpoints_and_be_given_by_two_paths(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints" / "run"
    RunFolder(folder, TrainConfig.from_flat("data", "model"))
    checkpoint = Checkpoints(folder).save(1, 5, {"w": torch.ones(1)}, {})
    monkeypatch.chdir(folder.parent)
    config = TrainConfig.from_flat("data", "model", resume="run", output=str(folder))
    assert [path.resolve() for path in resolved(config)] == [folder, checkpoint]


def test_resume_auto_starts_a_run_where_there_is_none(tmp_path):
    config = TrainConfig.from_flat("data", "model", resume="auto", output=str(tmp_path / "new"))
    assert resolved(config) == (tmp_path / "new", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(seed=1), "`seed=0` there, 1 here"),
        (dict(model="other"), "`model=model` there, other here"),
        (dict(epochs=9, lr=0.1), r"`epochs=4` there, 9 here; `lr=0.0005` there, 0.1 here"),
        (dict(output="elsewhere"), "`output=elsewhere` is not the folder of `resume="),
    ],
)
def test_a_resume_with_other_options_is_refused_with_the_difference(run_folder, options, message):
    folder, _ = run_folder()
    with pytest.raises(InputError, match=message):
        resolved(TrainConfig.from_flat(**{"dataset": "data", "model": "model", "resume": str(folder), **options}))


def test_a_resume_of_nothing_is_refused(tmp_path):
    for resume, message in (
        ("auto", "pass `output`"),
        (str(tmp_path), "neither a complete checkpoint"),
        (str(tmp_path / "no"), "is not a folder"),
    ):
        with pytest.raises(InputError, match=message):
            resolved(TrainConfig.from_flat("data", "model", resume=resume))


def test_the_state_of_another_version_is_refused(tmp_path):
    saved = vars(TrainState(step=3))
    assert TrainState.restored(dict(saved), tmp_path).step == 3
    with pytest.raises(InputError, match=r"`resume=.*` was written by another version of diffvit_timm"):
        TrainState.restored({**saved, "best_accuracy": 0.5}, tmp_path)
