"""Write a network in a form that runs without this package.

    diffvit export RUN model.onnx                     # any batch size
    diffvit export RUN model.pt2 --form pt2           # torch.export
    diffvit export RUN model.onnx --form onnx_int8    # matrix products in 8 bits

The file also has the class names and the preprocessing of the images, so that nothing else is needed to use it: the
keys are at the top of hub/export.py. The written network is then compared with the original one: the largest difference
of the logits, and the speed.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ...data.loading import model_data_config
from ...hub.export import Format, check_output, export_metadata, export_model
from ...options import CheckedOptions
from ...studies.timing import inference_step, interleaved, paired_ratio
from ..images import load_for_inference


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """New file, .onnx or .pt2. ONNX weights above about 1.5 GB go into OUT.data; keep both files together."""
    form: Format = "onnx"
    """onnx; onnx_int8: ONNX with matrix products in 8 bits; pt2: torch.export."""
    pretrained: bool = True
    """Load the pretrained weights."""


def main(options: Options) -> None:
    out = options.out
    check_output(out, options.form)
    network, _, _ = load_for_inference(options.model, "cpu", options.pretrained, hint="pass `pretrained=False`")
    size = model_data_config(network)["input_size"]
    images = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))  # (B, C, H, W)
    exported = export_model(network, out, options.form, images, export_metadata(network))
    run_exported = torch.inference_mode()(exported.run)  # the network itself is timed in inference mode too
    steps = {"eager": inference_step(network, images), "exported": lambda: run_exported(images)}
    seconds = interleaved(steps, repeats=7)
    speed, low, high = paired_ratio(seconds["exported"], seconds["eager"])
    print(
        f"{out}: {exported.size / 2**20:.1f} MB. On noise its outputs differ from the network's by "
        f"{exported.difference:.1e} of the largest output. It runs at {speed:.2f} times the speed of PyTorch "
        f"(quartiles {low:.2f} to {high:.2f})."
    )
