"""Export a network with torch.export or to ONNX, so that it runs without this package, and check the exported file.

An exported network takes batches of any size. Its images must be preprocessed with the network's own transform. The
weights of a large ONNX network, beyond about 1.5 GB, are in a second file, NAME.onnx.data, which must stay beside
NAME.onnx: a protobuf file cannot have more than 2 GB.

The file also has all that is needed to use it, as text by these keys:
    class_names      JSON list of the class names, in the order of the outputs, which are logits; [] if not known
    activation       softmax, or sigmoid if an image may have any number of classes: it makes logits probabilities
    preprocessing    JSON object: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode
    model            architecture in timm; for a converted network, that of the plain network
    attention        diff, diff_v2, gated, dna, or plain for any other
    diffvit_timm     version of the package that wrote the file
They are the `metadata_props` of an ONNX file, which onnxruntime returns as
`session.get_modelmeta().custom_metadata_map`, and the file `metadata.json` of a pt2 file.
"""

import contextlib
import dataclasses
import importlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import __version__
from ..data.loading import model_data_config
from ..errors import InputError
from ..files import disk_errors, require_writable
from ..layers.base import attention_kind
from ..models.outputs import class_names, is_multi_label_model

__all__ = ["Exported", "Format", "check_output", "export_metadata", "export_model"]

Format = Literal["pt2", "onnx", "onnx_int8"]
SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx", "onnx_int8": ".onnx"}
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
TOLERANCE = 1e-4  # largest difference of a float32 export, relative to the largest output; int8 has no limit


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        path: the exported file.
        size: bytes of the file, and of NAME.onnx.data if there is one.
        run: function that runs the exported network: images (B, C, H, W) -> outputs (B, num_classes).
        difference: largest absolute difference from the outputs of the network, relative to its largest output.
    """

    path: Path
    size: int
    run: Callable[[Tensor], Tensor]
    difference: float


def export_metadata(model: Any) -> dict[str, str]:
    """Return what a user of an exported network needs, by the keys at the top of this file.

    Args:
        model: timm model.

    Raises:
        InputError: the model reads neither grey nor colour images.
    """
    config = model_data_config(model)
    base = getattr(model, "_model_args", {}).get("base")  # of a converted network, with its tag
    architecture = str(base or model.pretrained_cfg.get("architecture") or type(model).__name__)
    return {
        "class_names": json.dumps(class_names(model) or []),
        "activation": "sigmoid" if is_multi_label_model(model) else "softmax",
        "preprocessing": json.dumps({name: config[name] for name in PREPROCESSING}),
        "model": architecture.partition(".")[0],
        "attention": attention_kind(model),
        "diffvit_timm": __version__,
    }


def export_model(
    model: nn.Module, out: Path, form: Format, images: Tensor, metadata: Mapping[str, str] | None = None
) -> Exported:
    """Export a network to a file, load the file again, and compare its outputs with those of the network.

    Args:
        model: network in evaluation mode, on the CPU.
        out: file to write, with the suffix of the format: .pt2 or .onnx.
        form: 'pt2' (torch.export), 'onnx' (torch's dynamo-based ONNX exporter) or 'onnx_int8' (ONNX with dynamic
            quantization: 8-bit weights in the matrix products, activations quantized at run time).
        images: (B, C, H, W), B >= 2, images for the comparison.
        metadata: texts to write into the file, from `export_metadata`.

    Raises:
        InputError: as `check_output`; a package is missing, torch cannot export the network, or the disk is full.
        RuntimeError: the exported file computes something else than the network.
    """
    check_output(out, form)
    # Everything is written under its final name into a temporary folder, because NAME.onnx contains the name of
    # NAME.onnx.data, and moves to its place only after the comparison.
    with torch.no_grad(), _silent(), tempfile.TemporaryDirectory(dir=out.parent, prefix=".export.") as folder:
        path = Path(folder) / out.name
        save = _exporter(model, form, images, metadata or {})
        with disk_errors(out.name, out.parent, "export again"):
            save(path)
        if form == "onnx_int8":
            path = _quantize(path)
        run = _load_pt2(path) if form == "pt2" else _load_onnx(path, form)
        difference = _difference(run, model, images)
        if form != "onnx_int8" and not difference <= TOLERANCE:
            raise RuntimeError(
                f"the {form} file computes something else than the network: its outputs differ by {difference:.1e} "
                "of the largest output"
            )
        size = _move_into_place(path, out)
    return Exported(out, size, run, difference)


def _move_into_place(path: Path, out: Path) -> int:
    """Move an exported file to `out`, with its NAME.onnx.data if there is one, and return their size in bytes."""
    files = [file for file in (_data_file(path), path) if file.exists()]
    size = sum(file.stat().st_size for file in files)
    for file in files:  # the network last: it is usable only with its weights
        file.replace(out.with_name(file.name))
    return size


def check_output(out: Path, form: Format) -> None:
    """Check the name of the file to write, before a network is loaded.

    Args:
        out, form: as in `export_model`.

    Raises:
        InputError: the suffix does not fit the format, the folder does not exist or cannot be written, or the file or
            NAME.onnx.data exists.
    """
    if out.exists():
        raise InputError(f"`out={out}` already exists: give a new file")
    if out.suffix != SUFFIXES[form]:
        raise InputError(f"`out={out}` does not fit `form={form}`: choose a file name that ends in {SUFFIXES[form]}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"`out={out}`: there is no folder {out.parent}: create it first")
    require_writable(out.absolute().parent, f"`out={out}`")
    if form != "pt2" and _data_file(out).exists():
        raise InputError(
            f"`out={out}` may store its weights in {_data_file(out)}, which already exists: choose another name"
        )


def _data_file(path: Path) -> Path:
    """Return where the weights of a large ONNX network are."""
    return path.with_name(path.name + ".data")


def _difference(run: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor) -> float:
    """Return the largest difference of the outputs, relative to the largest output of the network."""
    expected = model(images)  # (B, num_classes)
    # A batch of one, too: an exporter can specialise a program on the batch size that it has seen.
    pairs = ((images, expected), (images[:1], expected[:1]))
    largest = expected.abs().max().item() or 1.0  # all outputs of a head of zeros are 0
    return max((run(batch) - target).abs().max().item() / largest for batch, target in pairs)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide the warnings and log messages of the exporters, which are about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _any_batch_size() -> dict:
    return {0: torch.export.Dim("batch", min=1, max=65536)}


def _exporter(model: nn.Module, form: Format, images: Tensor, metadata: Mapping[str, str]) -> Callable[[Path], None]:
    """Export a network in memory, and return a function that saves the result to a path."""
    if form != "pt2":
        _require_onnx(form)
    try:
        return (_export_pt2 if form == "pt2" else _export_onnx)(model, images, metadata)
    except RuntimeError as error:
        raise _cannot_export(form, error) from error


def _cannot_export(form: Format, error: Exception) -> InputError:
    """Return the error for a network that a format cannot represent, with the first line of the cause."""
    first = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines()[0].replace("`", "'")
    return InputError(
        f"torch cannot export this network with `form={form}` ({type(error).__name__}: {first}): try another form"
    )


def _export_pt2(model: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> Callable[[Path], None]:
    program = torch.export.export(model, (images,), dynamic_shapes=(_any_batch_size(),))
    return lambda path: torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(metadata))})


def _load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _require_onnx(form: Format) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"`form={form}` needs {package}: pip install 'diffvit_timm[onnx]'") from error


def _export_onnx(model: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> Callable[[Path], None]:
    program: Any = torch.onnx.export(
        model, (images,), dynamo=True, dynamic_shapes=(_any_batch_size(),), input_names=["images"],
        output_names=["outputs"], verbose=False
    )  # fmt: skip
    program.model.metadata_props.update(metadata)
    return program.save


def _load_onnx(path: Path, form: Format) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes of errors have no common base
        raise _cannot_export(form, error) from error
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _quantize(path: Path) -> Path:
    """Quantize the weights of the matrix products of an ONNX file to 8 bits; returns the new file, in a subfolder."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    network = onnx.load(path)
    del network.graph.value_info[:]  # the exporter's shapes, which disagree with those that the quantizer infers
    quantized = path.parent / "int8" / path.name
    quantized.parent.mkdir()
    # One scale per output channel: with one scale per matrix, the outputs of a fine-tuned DeiT-Ti differ by 18 % of the
    # largest output instead of 8 %.
    quantize_dynamic(
        network,
        quantized,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QUInt8,
        use_external_data_format=_data_file(path).exists(),
    )
    return quantized
