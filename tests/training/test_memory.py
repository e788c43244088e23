"""An update is cut into the passes that the memory takes, and nothing else changes."""

import pytest
import torch
from accelerate import Accelerator

from diffvit_timm.errors import InputError
from diffvit_timm.training.memory import passes_that_fit


@pytest.fixture
def accelerator(monkeypatch):
    """Function: what another process found -> an accelerator of two processes."""

    def make(other=0):
        accelerator = Accelerator(cpu=True)
        monkeypatch.setattr(accelerator, "gather", lambda passes: torch.cat([passes, torch.tensor([other])]))
        return accelerator

    return make


def small_memory(model, most):
    """The model runs out of memory on more than `most` images."""

    def check(_, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check)
    return model


@pytest.mark.parametrize(("most", "passes"), [(99, 1), (16, 1), (15, 2), (5, 4), (1, 16)])
def test_passes_double_until_an_update_fits(accelerator, tiny_model, most, passes):
    assert passes_that_fit(small_memory(tiny_model(), most), (16, 3, 16, 16), 1, accelerator()) == passes


def test_all_processes_take_the_most_passes_that_one_needs(accelerator, tiny_model):
    assert passes_that_fit(tiny_model(), (16, 3, 16, 16), 1, accelerator(other=8)) == 8


def test_where_no_image_fits_the_way_out_is_named(accelerator, tiny_model):
    with pytest.raises(InputError, match=r"not one image .* --grad-checkpointing"):
        passes_that_fit(small_memory(tiny_model(), 0), (16, 3, 16, 16), 1, accelerator())


def test_another_error_is_not_taken_for_want_of_memory(accelerator, tiny_model):
    with pytest.raises(AssertionError, match="Input height"):
        passes_that_fit(tiny_model(), (16, 3, 15, 16), 1, accelerator())


def test_the_search_changes_neither_weights_nor_buffers_nor_gradients(accelerator):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    passes_that_fit(model, (4, 3, 2, 2), 1, accelerator())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
