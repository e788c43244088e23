"""The probe is scikit-learn's logistic regression on the features of the network, set as its head."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from diffvit_timm.data.loading import image_batches
from diffvit_timm.errors import InputError
from diffvit_timm.inspection.probes import PENALTIES
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.probe import fit_linear_probe
from diffvit_timm.training.run_config import RunConfig


@pytest.fixture
def accelerator(tmp_path):
    return make_accelerator(RunConfig(), tmp_path)  # resets the precision of an earlier test


def outputs(model, split):
    with torch.inference_mode():
        images = torch.cat(list(image_batches(model, split)))
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        return features.numpy().astype(np.float64), model(images)


@pytest.mark.parametrize("classes", [3, 2])
def test_the_head_is_one_of_the_regressions_and_the_rest_is_untouched(tiny_model, splits, accelerator, classes):
    few = {name: getattr(splits, name).filter(lambda row: row["label"] < classes) for name in ("train", "val", "test")}
    some = dataclasses.replace(splits, **few, class_names=splits.class_names[:classes])
    model = tiny_model(num_classes=classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    accuracy = fit_linear_probe(model, some, accelerator)
    assert model.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())

    features, logits = outputs(model, some.train)
    mean, std = features.mean(0), features.std(0) + 1e-6
    probabilities = logits.softmax(-1).numpy()
    errors = []
    for penalty in PENALTIES:
        fit = LogisticRegression(C=penalty, max_iter=300).fit((features - mean) / std, some.train["label"])
        errors.append(np.abs(fit.predict_proba((features - mean) / std) - probabilities).max())
    assert min(errors) < 1e-2

    _, val_logits = outputs(model, some.val)
    assert accuracy == pytest.approx((val_logits.argmax(-1).numpy() == np.array(some.val["label"])).mean())


def test_a_probe_does_better_than_the_head_it_replaces(tiny_model, splits, accelerator):
    model = tiny_model()
    labels = torch.tensor(splits.train["label"])
    before = (outputs(model, splits.train)[1].argmax(-1) == labels).float().mean()
    fit_linear_probe(model, splits, accelerator)
    after = (outputs(model, splits.train)[1].argmax(-1) == labels).float().mean()
    assert after > before + 0.2


def test_a_class_without_training_images_is_refused_by_name(tiny_model, splits, accelerator):
    lacking = dataclasses.replace(splits, train=splits.train.filter(lambda row: row["label"] != 2))
    with pytest.raises(InputError, match="but owl has none"):
        fit_linear_probe(tiny_model(), lacking, accelerator)


def test_a_head_that_is_not_linear_is_refused(tiny_model, splits, accelerator):
    model = tiny_model()
    model.head = nn.Sequential(nn.Linear(32, 3))
    with pytest.raises(InputError, match="`head_init=probe` needs a linear head"):
        fit_linear_probe(model, splits, accelerator)
