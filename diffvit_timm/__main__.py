"""python -m diffvit_timm: convert a plain ViT, predict, export; push and pull runs, to the Hub and back."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from timm.data import create_transform
from torch import Tensor

from .cli.console import one_line_errors
from .console import say
from .conversion.distillation import distill_layers
from .conversion.report import conversion_report
from .conversion.sources import check_source, vit_args
from .conversion.weights import READS_IMAGES, resolve_method
from .data.datasets import load_images
from .data.images import MODES, decode_image
from .data.loading import image_batches, model_data_config
from .errors import InputError, require_at_least, require_device, require_images
from .files import filling, new_folder
from .hub.export import Format, export_model
from .hub.publishing import pull_run, push_run
from .models.from_vit import from_vit
from .models.pretrained import check_model, class_names, load_model, model_name, save_pretrained
from .studies.timing import inference_step, interleaved, paired_ratio

app = tyro.extras.SubcommandApp()


@app.command
def convert(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")],
    *,
    attn: Literal["diff", "diff_v2"] = "diff",
    method: Literal["auto", "svd", "slice", "pairs", "calibrated", "mirror"] = "auto",
    images: str | None = None,
    image_column: str = "auto",
    calibration_images: int = 256,
    report_images: int = 256,
    distill: int = 0,
    lambda_init: float | None = None,
    branch_dims: tuple[int, int] | None = None,
    device: str = "cpu",
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Convert a plain ViT into a Diff-ViT, and report what it kept.

    Args:
        source: timm model name with its pretrained tag; local-dir:FOLDER and hf-hub:NAME too.
        out: folder to write, new or empty.
        attn: version of differential attention.
        method: auto is mirror for diff_v2, and for diff calibrated with --images, svd without.
        images: images to calibrate and report on: a folder, or a dataset's name on the Hub (its train split).
        image_column: column of the images; auto: the only image column.
        calibration_images: how many to calibrate on, drawn at random.
        report_images: how many of the others to report on.
        distill: passes over the calibration images in which each layer learns its source's output; 0: none.
        lambda_init: lambda at the start (default: 0.05 for diff, 0.5 for diff_v2).
        branch_dims: widths of the two branches of a head, for diff (default: three quarters and a quarter).
        device: where to compute: cpu, cuda, mps, ...
        seed: of the draw of images.
        as_json: print the report as JSON.
    """
    folder = new_folder(out, "OUT")
    check_model(source, option="SOURCE")
    require_at_least(1, calibration_images=calibration_images, report_images=report_images)
    require_at_least(0, distill=distill, seed=seed)
    if distill and images is None:
        raise InputError(f"--distill {distill} needs images to learn on: pass --images")
    calibrates = images is not None and attn == "diff" and method in ("auto", *READS_IMAGES)
    require_device(device)
    try:
        chosen = resolve_method(method, attn, calibrates)
    except ValueError as error:
        raise InputError(f"--method {method} --attn {attn}: {error}") from error
    pool, used = None, calibration_images if calibrates or distill else 0
    if images is not None:
        pool = load_images(images, image_column).shuffle(seed=seed)
        if len(pool) <= used:
            raise InputError(
                f"--images {images} has {len(pool)} images, none beside --calibration-images {used} to report on: "
                "lower that"
            )

    plain = load_model(source, option="SOURCE").eval().to(device)
    settings = {"lambda_init": lambda_init, "branch_dims": branch_dims}
    settings = {name: value for name, value in settings.items() if value is not None}
    seen: Iterable[Tensor] = []
    if pool is not None and used:
        seen = image_batches(plain, pool.take(used), label="reading images")
    kept = list(seen) if distill else []  # read once a pass
    try:
        check_source(plain)
        if unsaved := [name for name, value in vit_args(plain).items() if callable(value)]:
            raise ValueError(f"timm saves no {' and '.join(unsaved)}; diffvit_timm.from_vit converts it in memory")
        model = from_vit(plain, chosen, (kept or seen) if calibrates else None, attn=attn, **settings)
    except ValueError as error:
        given = "".join(f" --{name.replace('_', '-')} {value}" for name, value in settings.items())
        raise InputError(f"SOURCE {source}{given}: {error}") from error
    if distill:
        say(f"layer-wise distillation: {distill} passes over {used} images")
        distill_layers(plain, model, kept, distill)
    report = None
    if pool is not None:
        rest = pool.select(range(used, min(len(pool), used + report_images)))
        report = conversion_report(plain, model, image_batches(plain, rest))

    with filling(folder, "the model", "convert again") as aside:
        save_pretrained(model.cpu(), aside, plain.pretrained_cfg.get("label_names"))
    say(f"{chosen}: {folder}, for timm.create_model('local-dir:{folder}', pretrained=True) after import diffvit_timm")
    if as_json:
        result = {"source": source, "out": str(folder), "attn": attn, "method": chosen}
        print(json.dumps({**result, "report": report.to_dict() if report else None}))
    elif report:
        print(report)


@app.command
def predict(
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE")],
    *,
    model: str,
    top: int = 5,
    device: str = "cpu",
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Name the likeliest classes of images.

    Args:
        images: image files.
        model: timm model name with its pretrained tag, hf-hub:NAME, or a folder: of weights, or of a run.
        top: how many classes.
        device: where to compute: cpu, cuda, mps, ...
        as_json: print JSON.
    """
    require_at_least(1, top=top)
    require_images(images)
    network, transform, mode = _ready(model, device)
    if not network.num_classes:
        raise InputError(f"--model {model} has no head, and so no classes to name")
    names = class_names(network) or [f"class {i}" for i in range(network.num_classes)]
    said = {}
    for path in images:
        image = transform(decode_image({"bytes": None, "path": str(path)}, mode, str(path)))
        with torch.inference_mode():
            shares, classes = network(image[None].to(device)).float().softmax(-1)[0].topk(min(top, len(names)))
        said[str(path)] = [(names[c], p) for c, p in zip(classes.tolist(), shares.tolist(), strict=True)]
    if as_json:
        print(json.dumps(said))
        return
    for path, rows in said.items():  # type: ignore[assignment]
        print(path)
        print("\n".join(f"  {share:6.1%}  {name}" for name, share in rows))


@app.command
def export(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    *,
    form: Format = "onnx",
    pretrained: bool = True,
) -> None:
    """Write a network in a form that runs without this package, and compare it with the network.

    Args:
        model: timm model name with its pretrained tag, hf-hub:NAME, or a folder: of weights, or of a run.
        out: file to write, new: .onnx, or .pt2.
        form: pt2: torch.export; onnx; onnx_int8: matrix products in 8 bits.
        pretrained: load the pretrained weights.
    """
    if out.exists():
        raise InputError(f"OUT {out} is there already: give a new file")
    if not out.absolute().parent.is_dir():
        raise InputError(f"OUT {out}: there is no folder {out.parent}")
    network, _, _ = _ready(model, "cpu", pretrained, "MODEL")
    size = model_data_config(network)["input_size"]
    images = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    exported = export_model(network, out, form, images)
    run = torch.inference_mode()(exported.run)  # as the network itself is timed
    steps = {"eager": inference_step(network, images), "exported": lambda: run(images)}
    seconds = interleaved(steps, repeats=7)
    speed, low, high = paired_ratio(seconds["exported"], seconds["eager"])
    print(
        f"{out}: {out.stat().st_size / 2**20:.1f} MB, outputs for noise differ by {exported.difference:.1e} "
        f"of the largest, {speed:.2f}x the speed of PyTorch ({low:.2f} to {high:.2f})"
    )


def _ready(name: str, device: str, pretrained: bool = True, option: str = "--model") -> tuple[Any, Any, str]:
    """A network in evaluation mode, its transform, and the mode of its images."""
    require_device(device)
    check_model(model_name(name), pretrained, option, hint="pass --no-pretrained" if option == "MODEL" else "")
    network = load_model(model_name(name), pretrained, option).eval().to(device)
    settings = model_data_config(network)
    return network, create_transform(**settings, is_training=False), MODES[settings["input_size"][0]]


@app.command
def push(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")],
    *,
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Push the best weights of a run, its logs, its pictures and its card to the Hub.

    Args:
        run: folder of a run, or of weights.
        repo: NAME, or USER/NAME; made if it is not there.
        private: make it private, where it is made.
    """
    print(push_run(run, repo, private))


@app.command
def pull(
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")],
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")],
    *,
    revision: str | None = None,
) -> None:
    """Fetch a run that was pushed: its weights, logs and pictures.

    Args:
        repo: USER/NAME.
        out: folder to write, new or empty.
        revision: branch, tag or commit (default: the newest).
    """
    folder = new_folder(out, "OUT")
    pull_run(repo, folder, revision)
    print(folder)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        app.cli(prog="python -m diffvit_timm", args=sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
