"""A network in a form that runs without this package, torch.export's or ONNX, checked against the network itself.

Every form takes batches of any size, of images as the network's own transform makes them.
"""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import writing

__all__ = ["Exported", "Format", "export_model"]

Format = Literal["pt2", "onnx", "onnx_int8"]
SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx", "onnx_int8": ".onnx"}
CLOSE = 1e-4  # of the largest output: what float32 may differ by; 8 bits are reported as they are


@dataclasses.dataclass(frozen=True)
class Exported:
    """A form of a network.

    Attributes:
        path: the file.
        run: images (B, C, H, W) -> outputs (B, classes).
        difference: largest difference of an output to the network's, as a share of its largest output.
    """

    path: Path
    run: Callable[[Tensor], Tensor]
    difference: float


def export_model(model: nn.Module, path: Path, form: Format, images: Tensor) -> Exported:
    """Write a network in a form, load it again, and compare.

    Args:
        model: in evaluation mode, on the CPU.
        path: file to write, with the suffix of the form: .pt2 or .onnx.
        form: 'pt2' (torch.export), 'onnx' (through torch's dynamo exporter) or 'onnx_int8' (weights of matrix products
            in 8 bits, activations as they come).
        images: (B, C, H, W), B >= 2, to compare on.

    Raises:
        InputError: another suffix, packages that are missing, a network that torch cannot export, a full disk.
        RuntimeError: what was written computes something else.
    """
    if path.suffix != SUFFIXES[form]:
        raise InputError(f"OUT {path}: --form {form} is a {SUFFIXES[form]} file")
    with torch.no_grad(), _silent():
        expected = model(images)
        aside = path.with_name(f"{path.stem}.part{path.suffix}")
        try:
            save = _program(model, form, images)
            with writing(path.name, path.parent, "export again"):
                save(aside)
            if form == "onnx_int8":
                _quantize(aside)
            run = (_load_pt2 if form == "pt2" else _load_onnx)(aside)
            difference = max(
                ((run(part) - target).abs().max() / expected.abs().max()).item()
                for part, target in ((images, expected), (images[:1], expected[:1]))
            )
            if form != "onnx_int8" and not difference <= CLOSE:
                raise RuntimeError(f"{form} computes something else: outputs differ by {difference:.1e} of the largest")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return Exported(path, run, difference)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _any_batch() -> dict:
    return {0: torch.export.Dim("batch", min=1, max=65536)}


def _program(model: nn.Module, form: Format, images: Tensor) -> Callable[[Path], None]:
    """What saves the program of a network."""
    try:
        return (_pt2 if form == "pt2" else _onnx_program)(model, images)
    except RuntimeError as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise InputError(f"--form {form}: torch cannot export this network ({said})") from error


def _pt2(model: nn.Module, images: Tensor) -> Callable[[Path], None]:
    """What saves torch.export's program of a network."""
    program = torch.export.export(model, (images,), dynamic_shapes=(_any_batch(),))
    return lambda path: torch.export.save(program, path)


def _load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _onnx(name: str) -> Any:
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise InputError(f"--form onnx needs {name.split('.')[0]}: pip install 'diffvit_timm[onnx]'") from error


def _onnx_program(model: nn.Module, images: Tensor) -> Callable[[Path], None]:
    """What saves the ONNX program of a network."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _onnx(name)
    program: Any = torch.onnx.export(
        model, (images,), dynamo=True, dynamic_shapes=(_any_batch(),), input_names=["images"],
        output_names=["outputs"], verbose=False
    )  # fmt: skip
    return program.save


def _quantize(path: Path) -> None:
    onnx = _onnx("onnx")
    network = onnx.load(path)
    del network.graph.value_info[:]  # the exporter's own shapes, which the quantizer's do not agree with
    quantization = _onnx("onnxruntime.quantization")
    # a scale an output channel: with one a matrix, outputs of a fine-tuned DeiT-Ti differ by 18 % of the largest, not 8
    quantization.quantize_dynamic(
        network, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
        weight_type=quantization.QuantType.QUInt8
    )  # fmt: skip


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    session = _onnx("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
