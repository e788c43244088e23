"""An update is divided into as many accumulation steps as the memory needs, and nothing else changes."""

import pytest
import torch
from accelerate import Accelerator

from diffvit_timm.errors import InputError
from diffvit_timm.training.memory import find_accum_steps


@pytest.fixture
def accelerator(monkeypatch):
    """Function: accumulation steps that the other process needs -> an accelerator of two processes."""

    def make(other=0):
        accelerator = Accelerator(cpu=True)
        monkeypatch.setattr(accelerator, "gather", lambda steps: torch.cat([steps, torch.tensor([other])]))
        return accelerator

    return make


def small_memory(model, most):
    """Make the model run out of memory on more than `most` images."""

    def check(_, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check)
    return model


@pytest.mark.parametrize(("most", "steps"), [(99, 1), (16, 1), (15, 2), (5, 4), (1, 16)])
def test_accumulation_steps_double_until_an_update_fits(accelerator, tiny_model, most, steps):
    assert find_accum_steps(small_memory(tiny_model(), most), (16, 3, 16, 16), 1, accelerator()) == steps


def test_all_processes_take_the_largest_number_of_steps_that_one_needs(accelerator, tiny_model):
    assert find_accum_steps(tiny_model(), (16, 3, 16, 16), 1, accelerator(other=8)) == 8


def test_if_no_image_fits_the_error_says_what_to_do(accelerator, tiny_model):
    with pytest.raises(InputError, match=r"not even one image .* `grad_checkpointing=True`"):
        find_accum_steps(small_memory(tiny_model(), 0), (16, 3, 16, 16), 1, accelerator())


def test_another_error_is_not_taken_for_a_lack_of_memory(accelerator, tiny_model):
    with pytest.raises(AssertionError, match="Input height"):
        find_accum_steps(tiny_model(), (16, 3, 15, 16), 1, accelerator())


def test_the_search_changes_neither_weights_nor_buffers_nor_gradients(accelerator):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_accum_steps(model, (4, 3, 2, 2), 1, accelerator())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
