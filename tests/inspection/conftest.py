"""Fixtures: small ViTs with every supported kind of attention, and images for them."""

import pytest
import torch
from vits import KINDS, make_vit


@pytest.fixture(params=KINDS)
def any_vit(request):
    """Function: keyword arguments -> a model. The test runs once for each kind of attention."""
    return lambda **kwargs: make_vit(request.param, **kwargs)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
