"""A model that is cut over two processes (FSDP2, gloo) trains, stops and goes on as a whole one does."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator

from diffvit_timm.errors import InputError
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.optim import build_optimizer
from diffvit_timm.training.sharding import load_optimizer_state, load_weights, whole_optimizer_state, whole_weights

# What accelerate does itself where there are GPUs.
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
from diffvit_timm.training.run_folder import resolve_run
from diffvit_timm.training.sharding import whole_weights

dataset, folder = sys.argv[1:]
config = TrainConfig(
    dataset, "diffvit", batch_size=4, epochs=2, lr=1e-2, warmup_epochs=0.0, workers=0, log_every=1, augment="none",
    checkpoint_every=0.5, grad_accum=2, lambda_warmup=1.0
)
accelerator = make_accelerator(config, Path(folder))
splits = load_splits(dataset)


def train(name, engine, stop_at=None, resume="never"):
    settings = dataclasses.replace(config, output=f"{folder}/{name}", resume=resume)
    accelerator.state.distributed_type = engine
    if engine == DistributedType.FSDP:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
            cpu_ram_efficient_loading=False, state_dict_type="FULL_STATE_DICT"
        )
        assert accelerator.is_fsdp2
    output, checkpoint = resolve_run(settings, "train")
    torch.manual_seed(0)
    model = timm.create_model(
        "diffvit_tiny_patch16", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3
    )
    trainer = Trainer(settings, accelerator, model, splits, output)
    cut = [type(p).__name__ for p in trainer.net.parameters()]
    if stop_at:
        update = trainer._update
        def stopped(*batch):
            if trainer.step == stop_at:
                raise KeyboardInterrupt
            return update(*batch)
        trainer._update = stopped
    result = trainer.fit(checkpoint)
    weights = {name: tensor.tolist() for name, tensor in whole_weights(trainer.net).items()}
    return {"result": result, "weights": weights, "cut": cut.count("DTensor"), "parameters": len(cut)}


reports = {"whole": train("whole", DistributedType.MULTI_CPU), "cut": train("cut", DistributedType.FSDP)}
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
    """What trainings of two processes end with: a whole model, one that is cut up, and the same stopped and resumed."""
    folder = tmp_path_factory.mktemp("sharded")
    on_ranks(2, PROCESSES, image_folder, folder)
    return {**json.loads((folder / "reports.json").read_text()), "folder": folder}


def test_every_parameter_is_cut_up(reports):
    assert reports["cut"]["cut"] == reports["cut"]["parameters"]
    assert reports["whole"]["cut"] == 0


def test_a_model_that_is_cut_up_trains_to_the_weights_of_a_whole_one(reports):
    for name, tensor in reports["whole"]["weights"].items():
        # a hundredth of an update: AdamW makes full steps of gradients that are rounding alone, as those of key biases
        np.testing.assert_allclose(reports["cut"]["weights"][name], tensor, atol=1e-4, err_msg=name)
    for name in ("test_accuracy", "lambda", "updates"):
        assert reports["cut"]["result"][name] == pytest.approx(reports["whole"]["result"][name], rel=1e-4), name


def test_a_model_that_is_cut_up_goes_on_from_its_checkpoint_to_the_same_bits(reports):
    assert reports["resumed"]["weights"] == reports["cut"]["weights"]
    assert reports["resumed"]["result"]["test_loss"] == reports["cut"]["result"]["test_loss"]


def test_what_a_training_of_a_cut_up_model_leaves_is_a_whole_model(reports):
    model = timm.create_model(f"local-dir:{reports['folder']}/cut/best", pretrained=True)
    weights = reports["cut"]["weights"]
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()}.keys() == weights.keys()


def test_a_launch_file_that_shards_where_nothing_can_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"^the launch file asks for FSDP.*several GPUs.*ddp\.yaml"):
        make_accelerator(TrainConfig("data", "tiny"), Path("run"))


def test_an_average_of_weights_that_are_cut_up_is_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(InputError, match=r"^--ema 0\.9 averages whole weights.*ddp\.yaml"):
        make_accelerator(TrainConfig("data", "tiny", ema=0.9), Path("run"))


@pytest.mark.parametrize("opt", ["adamw", "nmuon"])
def test_the_state_of_an_optimizer_survives_a_way_through_a_file(tiny_model, tmp_path, opt):
    def trained(updates, state=None):
        torch.manual_seed(0)
        model = tiny_model()
        optimizer = build_optimizer(model, TrainConfig("data", "tiny", opt=opt))
        if state:
            load_weights(model, state["weights"])
            load_optimizer_state(model, optimizer, state["optimizer"])
        for update in updates:
            generator = torch.Generator().manual_seed(update)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return {"weights": whole_weights(model), "optimizer": whole_optimizer_state(model, optimizer)}

    torch.save(trained(range(3)), tmp_path / "state.pt")
    resumed = trained(range(3, 6), torch.load(tmp_path / "state.pt", weights_only=True))
    expected = trained(range(6))
    for name, tensor in expected["weights"].items():
        assert torch.equal(resumed["weights"][name], tensor), name
