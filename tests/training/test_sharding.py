"""A model that is sharded over two processes (FSDP2, gloo) trains, stops and continues like one that is not."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from accelerate import Accelerator

from diffvit_timm.errors import InputError
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.run_config import RunConfig

# The program sets up FSDP2 by hand, because accelerate only does so with GPUs.
PROCESSES = """
import dataclasses, json, sys
from pathlib import Path

import timm, torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
import diffvit_timm
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.trainer import Trainer
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.run_folder import open_run
from diffvit_timm.training.sharding import full_weights

dataset, folder = sys.argv[1:]
config = TrainConfig.from_flat(
    dataset, "diffvit", batch_size=4, epochs=2, lr=1e-2, warmup_epochs=0.0, workers=0, log_every=1, augment="none",
    checkpoint_every=0.5, grad_accum=2, lambda_warmup=1.0
)
accelerator = make_accelerator(config.run, Path(folder), config.optim.ema)
splits = load_splits(dataset)


def train(name, engine, stop_at=None, resume="never"):
    settings = config.replace(output=f"{folder}/{name}", resume=resume)
    accelerator.state.distributed_type = engine
    if engine == DistributedType.FSDP:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
            cpu_ram_efficient_loading=False, state_dict_type="FULL_STATE_DICT"
        )
        assert accelerator.is_fsdp2
    with open_run(settings, "train") as (output, checkpoint):
        pass
    torch.manual_seed(0)
    model = timm.create_model(
        "diffvit_tiny_patch16", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3
    )
    trainer = Trainer(settings, accelerator, model, splits, output)
    kinds = [type(p).__name__ for p in trainer.learner.net.parameters()]
    if stop_at:
        update = trainer.learner.update
        def stopped(images, labels, step):
            if step == stop_at:
                raise KeyboardInterrupt
            return update(images, labels, step)
        trainer.learner.update = stopped
    result = trainer.fit(checkpoint)
    weights = {name: tensor.tolist() for name, tensor in full_weights(trainer.learner.net).items()}
    return {"result": result, "weights": weights, "sharded": kinds.count("DTensor"), "parameters": len(kinds)}


reports = {"plain": train("plain", DistributedType.MULTI_CPU), "sharded": train("sharded", DistributedType.FSDP)}
try:
    train("stopped", DistributedType.FSDP, stop_at=6)
except KeyboardInterrupt:
    accelerator.wait_for_everyone()
    reports["resumed"] = train("stopped", DistributedType.FSDP, resume="auto")
if accelerator.is_main_process:
    Path(folder, "reports.json").write_text(json.dumps(reports))
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def reports(image_folder, tmp_path_factory, on_ranks):
    """Outcomes of trainings on two processes: not sharded, sharded, and sharded but stopped and resumed."""
    folder = tmp_path_factory.mktemp("sharded")
    on_ranks(2, PROCESSES, image_folder, folder)
    return {**json.loads((folder / "reports.json").read_text()), "folder": folder}


def test_every_parameter_is_sharded(reports):
    assert reports["sharded"]["sharded"] == reports["sharded"]["parameters"]
    assert reports["plain"]["sharded"] == 0


def test_a_sharded_model_trains_to_the_weights_of_one_that_is_not(reports):
    for name, tensor in reports["plain"]["weights"].items():
        # A hundredth of an update: AdamW turns gradients of pure rounding noise, as of key biases, into full steps.
        np.testing.assert_allclose(reports["sharded"]["weights"][name], tensor, atol=1e-4, err_msg=name)
    for name in ("test_accuracy", "lambda", "updates"):
        assert reports["sharded"]["result"][name] == pytest.approx(reports["plain"]["result"][name], rel=1e-4), name


def test_a_sharded_model_continues_from_its_checkpoint_to_the_same_bits(reports):
    assert reports["resumed"]["weights"] == reports["sharded"]["weights"]
    assert reports["resumed"]["result"]["test_loss"] == reports["sharded"]["result"]["test_loss"]


def test_the_training_of_a_sharded_model_saves_a_full_model(reports):
    model = timm.create_model(f"local-dir:{reports['folder']}/sharded/best", pretrained=True)
    weights = reports["sharded"]["weights"]
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()}.keys() == weights.keys()


def test_a_launch_file_that_asks_for_sharding_without_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"^the launch file asks for FSDP.*several GPUs.*ddp\.yaml"):
        make_accelerator(RunConfig(), Path("run"))


def test_an_average_of_sharded_weights_is_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(InputError, match=r"^`ema=0\.9` averages whole weights.*ddp\.yaml"):
        make_accelerator(RunConfig(), Path("run"), ema=0.9)
