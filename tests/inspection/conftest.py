"""Fixtures: small ViTs of every kind of attention that can be captured, and images for them."""

import pytest
import torch
from vits import KINDS, make_vit


@pytest.fixture(params=KINDS)
def any_vit(request):
    """Function: keyword arguments -> a model of each kind of attention in turn."""
    return lambda **kwargs: make_vit(request.param, **kwargs)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
