"""The training loop on accelerate: train, choose the best epoch on the validation split, test that epoch once."""

import functools
import itertools
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn

from ..console import counted, log0, progress
from ..data.class_balance import imbalance, reports_balanced
from ..data.loading import evaluation_images, image_batches, model_data_config, training_images
from ..data.splits import Splits
from ..errors import DivergedError
from ..hub.redaction import redacted_text
from ..inspection.attention_maps import has_heat_maps
from ..inspection.naming import model_title
from ..inspection.statistics import LayerStatistics, layer_statistics
from ..layers.base import attention_kind, differential_layers
from .attention_pictures import AttentionPictures
from .batches import TrainingBatches, evaluation_batches
from .checkpoint import Checkpoints, load_checkpoint
from .config import TrainConfig
from .curves import plot_training
from .evaluation import evaluate
from .learner import Learner
from .longer import planned
from .objective import make_objective
from .optim import warmup_updates
from .predictions import draw_predictions
from .resume import check_best, check_same_run, run_identity
from .run_folder import RunFolder
from .signals import StopSignal
from .state import TrainState
from .trackers import finish_trackers, log_picture, log_row, start_trackers

__all__ = ["Trainer"]

STATISTICS_IMAGES = 16  # validation images on which lambda and negative attention are measured after each epoch

COLUMNS = (
    "after each epoch: {} and loss (nats) on the validation images; for differential attention the least and the "
    "largest lambda of a layer, and the largest share of negative attention in a layer"
)


class Trainer:
    """Trains one model on one dataset.

    Args:
        config: options of the training.
        accelerator: accelerator from `make_accelerator`.
        model: model from `create_model` or `from_vit`; it is trained in place.
        splits: splits from `load_splits`.
        output: run folder, from `open_run`.
        conversion: summary of the conversion, for the result.
        teacher: network from `load_teacher` to distil from.

    Attributes:
        learner: the model, its optimizer and its schedules.
        state: progress of the training.

    Raises:
        InputError: options that do not fit the model or the images.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        splits: Splits,
        output: Path,
        conversion: dict | None = None,
        teacher: Any = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.splits = splits
        self.conversion = conversion
        self.output = broadcast_object_list([output])[0]  # ranks may have read the clock a second apart
        self.run: RunFolder | None = None  # created by `fit`, so that invalid options leave nothing behind
        self.state = TrainState()
        self.checkpoints = Checkpoints(self.output, config.run.keep_checkpoints)
        self.stop = StopSignal()

        self._build_loaders(model)
        self.objective = make_objective(config, splits, accelerator.device)
        has_sizes = not (self.batches.is_stream or splits.is_multi_label)  # whether every image counts for one class
        self.imbalance = imbalance(splits.train["label"][:]) if has_sizes else None
        self.is_balanced = config.data.class_balance != "none" and not splits.is_multi_label
        self.shows_balanced = not splits.is_multi_label and reports_balanced(self.imbalance, config.data.class_balance)
        self.learner = Learner(
            config, accelerator, model, self.objective, self.updates_per_epoch, self.updates, teacher
        )
        self._build_observers(model)

    def _build_loaders(self, model: nn.Module) -> None:
        """Create the batches of the three splits."""
        config, self.data_config = self.config, model_data_config(model)
        images = training_images(
            self.splits.train, config.data.augment, self.data_config, config.data.crop_scale, config.run.seed
        )
        self.batches = TrainingBatches(images, config, self.accelerator)
        self.updates_per_epoch = self.batches.per_epoch
        self.updates, self.epochs = config.optim.length(self.updates_per_epoch)
        self.val_loader, self.test_loader = (
            evaluation_batches(evaluation_images(split, self.data_config), config, self.accelerator)
            for split in (self.splits.val, self.splits.test)
        )

    def _build_observers(self, model: nn.Module) -> None:
        """Choose the images on which lambda is measured and attention is drawn."""
        run, val = self.config.run, self.splits.val
        self.layers = differential_layers(model)
        self.statistics_images = list(image_batches(model, val, STATISTICS_IMAGES)) if self.layers else []
        self.pictures = None
        if run.attention_every or (run.push_to_hub and has_heat_maps(model)):
            self.pictures = AttentionPictures(
                model, val, self.splits.class_names, self.output / "attention", self.title
            )

    def fit(self, checkpoint: Path | None = None) -> dict:
        """Train, choose the best epoch on the validation split, and test it once.

        Args:
            checkpoint: checkpoint to continue from, from `open_run`.

        Returns:
            The result, as in result.json.

        Raises:
            InputError: the loss became NaN or infinite, an image did not decode, or a checkpoint of another run.
            SystemExit: after SIGTERM, SIGUSR1 or SIGHUP and a checkpoint, with 128 plus the number of the signal.
        """
        rows = self._restore(checkpoint) if checkpoint else 0
        if self.accelerator.is_main_process:
            self.run = RunFolder(self.output, self.config, rows)
        start_trackers(self.accelerator, self.config, self.output, self.state.step)
        try:
            return self._fit()
        finally:
            finish_trackers(self.accelerator)

    def _fit(self) -> dict:
        self.learner.fit_memory()
        self._announce()
        self.started = time.perf_counter() - self.state.seconds
        patience = self.config.optim.patience
        with self.stop.listening():
            for epoch in range(self.state.epochs_done, self.epochs):
                if patience and self.state.epochs_since_best >= patience:
                    log0(f"the last {self.state.epochs_since_best} epochs were not better: the training stops early")
                    break
                self._train_epoch(epoch)
                self._evaluate_epoch(epoch)
            self.accelerator.wait_for_everyone()
            return self._finish()

    def _announce(self) -> None:
        """Print the size of everything before the first update."""
        config, splits, processes = self.config, self.splits, self.accelerator.num_processes
        parameters = sum(p.numel() for p in self.learner.net.parameters())
        frozen = sum(p.numel() for p in self.learner.net.parameters() if not p.requires_grad)
        size = f"{parameters / 1e6:.2f} M parameters" + (f", {frozen / 1e6:.2f} M frozen" if frozen else "")
        batch_size = config.optim.batch_size
        log0(
            f"{config.model.model}: {size}; {len(splits.train)} train, {len(splits.val)} val, "
            f"{len(splits.test)} test images, {len(splits.class_names)} classes\n"
            f"{self.updates} updates, {self.updates_per_epoch} per epoch, of {batch_size * processes} images "
            f"({batch_size} per process; processes: {processes}; accumulation steps: {self.learner.accum_steps})\n"
            f"on {self.accelerator.device} ({torch.get_num_threads()} CPU threads per process), "
            f"precision {self.accelerator.mixed_precision}; run folder {self.output}"
        )
        if self.learner.progressive:
            log0(str(self.learner.progressive))
        if self.shows_balanced:
            log0(
                f"the largest class has {self.imbalance:.1f} times as many training images as the smallest "
                f"(class_balance: {config.data.class_balance}); 'balanced' is the mean accuracy over the classes"
            )
        length = self.updates - self.state.schedule_start
        if warmup_updates(config.optim, self.updates_per_epoch, length) == length:
            steps, epochs = config.optim.warmup_steps, config.optim.warmup_epochs
            warmup, option = (
                (f"{steps:,} updates", "warmup_steps") if steps else (f"{epochs:g} epochs", "warmup_epochs")
            )
            log0(
                f"the warm-up of {warmup} takes the whole training, which never reaches the learning rate "
                f"{config.optim.lr:g}: lower {option}"
            )
        log0(COLUMNS.format(self.objective.metric.replace("_", " ")))

    def _train_epoch(self, epoch: int) -> None:
        """Train for one epoch, or for the part of it that a checkpoint left."""
        start, state, run = time.perf_counter(), self.state, self.config.run
        self.learner.set_training_mode()
        done = state.step - epoch * self.updates_per_epoch
        end = min(self.updates_per_epoch, self.updates - epoch * self.updates_per_epoch)
        with progress(f"epoch {epoch + 1}", end - done) as advance:
            for batch, (images, labels) in enumerate(
                itertools.islice(self.batches.of_epoch(epoch, done), end - done), start=done + 1
            ):
                # 1. Update. The loss stays on the device until a row is due, because reading it would stall a GPU.
                state.losses.append(self.learner.update(images, labels, state.step))
                state.step += 1
                # 2. Log. `place` is the epoch as a fraction.
                is_last, text, place = batch == end, "", epoch + batch / self.updates_per_epoch
                row_is_due = state.step % run.log_every == 0 or is_last
                if row_is_due:
                    loss = self._check_losses(state.losses)
                    state.losses.clear()
                    self._log(epoch=place, train_loss=loss, lr=self.learner.last_lr)
                    text = f"loss {loss:.3f}"
                advance(text)
                now = time.perf_counter()
                state.train_seconds, start = state.train_seconds + now - start, now
                # 3. Validate, stop or save, if one of them is due.
                if not is_last and run.val_every and state.step % run.val_every == 0:
                    self._validate_within_epoch(place)
                    start = time.perf_counter()
                self._stop_if_asked(together=row_is_due)
                if not is_last and self._checkpoint_is_due():  # after the epoch it waits for the evaluation
                    self._save_checkpoint()

    def _check_losses(self, losses: list[Tensor]) -> float:
        """Return the mean of the last losses over all processes. Reading every loss at once would stall a GPU."""
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        for step, value in enumerate(values, start=self.state.step - len(values) + 1):
            self._require_finite(value, step)
        return sum(values) / len(values)

    def _require_finite(self, loss: float, step: int | None = None) -> None:
        if not math.isfinite(loss):
            where = f"at update {step}" if step else f"on the validation images after update {self.state.step}"
            raise DivergedError(
                f"the loss is {loss} {where}: lower `lr={self.config.optim.lr:g}`, raise `warmup_epochs` "
                "or use `precision=no`"
            )

    def evaluate(self, loader: Any, label: str, stops: bool = True) -> Any:
        """Evaluate the present weights on a prepared loader; with `stops`, a signal stops it."""
        model = self.learner.eval_model if self.learner.ema else self.learner.model
        after_batch = (lambda: self._stop_if_asked(together=False)) if stops else None
        return evaluate(model, loader, self.objective, self.accelerator, label, after_batch)

    def _evaluate_epoch(self, epoch: int) -> None:
        """Validate after an epoch, save the best weights, and draw attention and take a checkpoint if they are due."""
        state, every = self.state, self.config.run.attention_every
        # 1. Measure and log.
        val = self.evaluate(self.val_loader, f"val {epoch + 1}")
        self._require_finite(val.loss)
        self.learner.gather_weights()
        statistics = self._statistics()
        lambdas, negative = statistics.lambdas, statistics.negative_mass
        layers: dict[str, Any] = {"lambda": lambdas, "negative_mass": negative}
        if self.shows_balanced:
            layers["val_mean_per_class"] = val.mean_per_class
        value = self._log_validation(state.step / self.updates_per_epoch, val, **layers)
        columns = [f"epoch {epoch + 1}/{self.epochs}", f"{self.objective.shown} {value:.2%}"]
        if self.shows_balanced:
            columns.append(f"balanced {val.mean_per_class:.2%}")
        columns.append(f"val loss {val.loss:.3f}")
        if lambdas:
            columns.append(f"lambda {min(lambdas):.3f} to {max(lambdas):.3f}  negative {max(negative):.1%}")
        log0("  ".join([*columns, f"{time.perf_counter() - self.started:.0f} s"]))
        # 2. Keep the weights if they are the best so far, or the last.
        state.epochs_since_best += 1
        keeps_last = self.config.optim.keep_weights == "last"
        # accuracies on few images are often equal: the lower loss decides
        score = val.mean_per_class if self.is_balanced else value
        if keeps_last or (score, -val.loss) > state.best:
            state.best, state.best_value, state.epochs_since_best = (score, -val.loss), value, 0
            if self.run:
                self.run.save_best(self.learner.saved_model(), self.splits.class_names)
        # 3. Draw attention and take a checkpoint, if they are due.
        state.epochs_done = epoch + 1
        if self.pictures and self.run and every and state.epochs_done % every == 0:
            self.pictures.draw(self.learner.eval_model, f"epoch-{state.epochs_done:03d}", self.accelerator, state.step)
        if self._checkpoint_is_due():
            self._save_checkpoint()
        self._stop_if_asked(together=True)

    def _validate_within_epoch(self, place: float) -> None:
        """Log a validation between two epochs, which chooses nothing."""
        # it does not stop, because the checkpoint of a signal would lack this row
        val = self.evaluate(self.val_loader, f"val {place:.2f}", stops=False)
        self._log_validation(place, val)
        self.learner.set_training_mode()

    def _log_validation(self, place: float, val: Any, **layers: Any) -> float:
        """Log the score on the validation images; returns its value."""
        value = self.objective.value(val)
        self._log(epoch=place, **{f"val_{self.objective.metric}": value}, val_loss=val.loss, **layers)
        return value

    def _statistics(self) -> LayerStatistics:
        if not self.layers:
            return LayerStatistics([], [])
        return layer_statistics(self.learner.eval_model, self.statistics_images)

    def _log(self, **row) -> None:
        row = {"step": self.state.step, **row}
        if self.run:
            self.run.log(**row)
        log_row(self.accelerator, row, self.state.step)

    def _finish(self) -> dict:
        """Test the best weights once, and write the result and the pictures."""
        if self.config.run.checkpoint_every and self.state.step > self.state.last_checkpoint:
            self._save_checkpoint()  # from the end of a run it can be trained for longer
        seconds = time.perf_counter() - self.started  # without the test
        self.learner.load_eval_weights(load_file(self.output / "best" / "model.safetensors"))
        state = self.state
        result = {
            **self.test(),
            f"val_{self.objective.metric}": state.best_value,
            "train_images": len(self.splits.train),
            "epochs": state.epochs_done,
            "updates": state.step,
            "planned": planned(self.config.flat()),
            "restarts": state.restarts,
            "seconds": round(seconds, 1),
            "images_per_second": round(state.step * self.batches.images_per_update / state.train_seconds, 1),
        }
        if self.run:
            self.draw(self.run)
            self.run.write_json("result.json", result)  # last, because a run that has it is finished
        return result

    def draw(self, run: RunFolder) -> None:
        """Draw the pictures of a finished training, and send them to the trackers."""
        plot_training(run.rows, run.path / "training.png", self.title)
        self.draw_predictions()
        for name in ("training", "predictions"):
            log_picture(self.accelerator, name, run.path / f"{name}.png", self.state.step)
        if self.pictures and self.config.run.push_to_hub:
            self.pictures.draw(self.learner.eval_model, "the-best-weights", self.accelerator, self.state.step)

    @property
    def title(self) -> str:
        """Model, attention and dataset, for the titles of pictures, without paths: they are pushed, too."""
        model = model_title(redacted_text(self.config.model.model), self.learner.net)
        return f"{model}, on {Path(self.config.data.dataset).name}"

    def draw_predictions(self) -> None:
        """Draw test images, right and wrong ones, with the predictions of the weights that were tested."""
        draw_predictions(
            self.learner.eval_model, self.splits.test, self.splits.class_names, self.tested,
            self.output / "predictions.png", self.title, self.accelerator,
        )  # fmt: skip

    def test(self) -> dict:
        """Test the present weights; returns their scores, the fingerprints of the images, and facts about the model."""
        scores = self.test_scores()
        statistics, held_out = self._statistics(), self.config.data.test_share
        return {
            **scores,
            "class_imbalance": self.imbalance,
            "class_balance": self.config.data.class_balance,
            "fingerprints": self.splits.fingerprints,
            "test_split": "held out of train" if held_out else str(self.splits.test.split or "test"),
            "model": self.config.model.model,
            "attn": attention_kind(self.learner.net),
            "lora": self.config.model.lora,
            "seed": self.config.run.seed,
            "conversion": self.conversion,
            "lambda": statistics.lambdas,
            "negative_mass": statistics.negative_mass,
        }

    def test_scores(self) -> dict:
        """Return the scores of the present weights on the test split."""
        self.tested = self.evaluate(self.test_loader, "test")
        return self.objective.report(self.tested, self.splits.class_names)

    def _stop_if_asked(self, together: bool) -> None:
        """Take a checkpoint and exit if a signal came; several processes do so only where all are `together`."""
        if self.accelerator.num_processes > 1:
            if not together:
                return
            self.stop.agree(self.accelerator)
        if self.stop.number:
            self._save_checkpoint()
            name = signal.Signals(self.stop.number).name
            log0(f"{name}: the checkpoint of update {self.state.step} is written; continue with resume={self.output}")
            raise SystemExit(128 + self.stop.number)

    def _checkpoint_is_due(self) -> bool:
        every, since = self.config.run.checkpoint_every, self.state.step - self.state.last_checkpoint
        return every > 0 and since >= max(1, round(every * self.updates_per_epoch))

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Properties of this run that its checkpoints record, and that a resumed run must have, too."""
        return run_identity(
            self.learner.net, self.splits, self.data_config, self.learner.teacher, self.accelerator.num_processes
        )

    def _save_checkpoint(self) -> None:
        self.state.last_checkpoint = self.state.step
        weights, learner = self.learner.state_dict()
        if self.run:
            saved = {
                **learner,
                "identity": self.identity,
                "state": {**vars(self.state), "seconds": time.perf_counter() - self.started},
                "rows": len(self.run.rows),
                "conversion": self.conversion,
                "planned": planned(self.config.flat()),
            }
            self.checkpoints.save(self.state.epochs_done, self.state.step, weights, saved)

    def _restore(self, checkpoint: Path) -> int:
        """Continue from a checkpoint; returns how many rows metrics.jsonl had."""
        weights, saved = load_checkpoint(checkpoint)
        check_same_run(checkpoint, saved.get("identity", {}), self.identity)
        if saved["state"]["epochs_done"]:
            check_best(self.output / "best")
        if self.accelerator.is_main_process:
            self.checkpoints.remove_after(checkpoint)
        self.state = TrainState.restored(saved["state"], checkpoint)
        self.state.losses = [loss.to(self.accelerator.device) for loss in self.state.losses]
        log0(f"continuing from {checkpoint}: {self.state.epochs_done} epochs and {self.state.step} updates are done")
        is_longer = saved.get("planned", planned(self.config.flat())) != planned(self.config.flat())
        if is_longer:
            self._restart_schedule()
        self.learner.load_state_dict(weights, saved, self.state.schedule_start, is_longer)
        self.conversion = saved["conversion"]
        return saved["rows"]

    def _restart_schedule(self) -> None:
        """Let the schedule of a run that had ended start anew for the updates that are added to it."""
        state, optim = self.state, self.config.optim
        state.restarts = [*state.restarts, state.step]
        state.epochs_done, state.epochs_since_best = state.step // self.updates_per_epoch, 0
        added = self.updates - state.step
        warmup = warmup_updates(optim, self.updates_per_epoch, added)
        log0(
            f"the run had ended there, so its schedule starts anew for the {counted(added, 'added update')}: "
            f"{counted(warmup, 'update')} of warm-up to the learning rate {optim.lr:g}, then a cosine decay to zero"
        )
