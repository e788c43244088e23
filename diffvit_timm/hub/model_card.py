"""The model card of a run: what the model is, how to use it, how it was trained, its results and its limits."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from timm.models import get_pretrained_cfg

from ..console import counted, printable
from ..models.generic import plain_name
from ..models.saved_config import MULTI_LABEL
from .card_results import Metric, result_metrics, results_section
from .licences import DATA_LICENCES, licence_fields
from .markdown import code_block, code_span, escaped
from .redaction import Records, weights_folder

__all__ = ["HAND_WRITTEN_MARK", "model_card"]

HAND_WRITTEN_MARK = "<!-- Text below this line is kept when the run is pushed again. -->"

PAPER = "[Differential Transformer](https://arxiv.org/abs/2410.05258)"
VERSION_2 = "[Differential Transformer V2](https://huggingface.co/blog/microsoft/diff-attn-v2)"


DRAWN = (
    " from the wrong and from the right ones, with the three likeliest classes. A wrong image has a cross, its true "
    "class and a dashed frame."
)
DRAWN_OF_SEVERAL = ", with the three likeliest classes. The bars of the classes that an image has are blue and hatched."


def model_card(run: Path, records: Records, repo: str, files: Sequence[str], path_in_repo: str = "") -> str:
    """Write the model card of a run folder, or of a folder with weights only, whose card is shorter.

    Names of classes, datasets and models are escaped, so that they format nothing.

    Args:
        run: run folder, or folder with config.json and model.safetensors.
        records: what `redacted_records` returns for the folder.
        repo: USER/NAME of the repository on the Hub.
        files: paths of the files, relative to the card.
        path_in_repo: folder of the run in the repository; empty for its root.

    Returns:
        The text of README.md, with its YAML front matter.
    """
    model = json.loads((weights_folder(run) / "config.json").read_text(encoding="utf-8"))
    has_one = not _is_multi_label(model)
    sections = [
        _front_matter(model, records, repo),
        f"# {(path_in_repo or repo).split('/')[-1]}\n\n{_description(model, records)}",
        _usage(model, repo, path_in_repo),
        results_section(records),
        _training(records),
        _figures(files, has_one),
        _limits(records, has_one),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _base_model(config: dict) -> str | None:
    """Return the name on the Hub of the checkpoint that the training started from, None without one."""
    if not config.get("pretrained"):
        return None
    name = next(
        (text.removeprefix("base=") for text in config.get("model_kwargs", ()) if text.startswith("base=")),
        config["model"],
    )
    if name.startswith("hf-hub:"):
        repo = name.removeprefix("hf-hub:")
    else:
        cfg = None if name.startswith("local-dir:") else get_pretrained_cfg(plain_name(name))
        repo = (cfg.hf_hub_id if cfg else None) or ""
    repo = repo.partition("@")[0]
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return None
    return repo


def _needs_package(model: dict) -> bool:
    """Return whether timm knows the architecture only after `import diffvit_timm`."""
    return model["architecture"].startswith("diffvit")


def _is_multi_label(model: dict) -> bool:
    """Return whether an image may have any number of the classes."""
    return model.get("problem_type") == MULTI_LABEL


def _attention(model: dict, result: dict) -> str:
    """Return the kind of attention: 'diff', 'diff_v2' or 'plain'."""
    if attn := result.get("attn") or model.get("model_args", {}).get("attn"):
        return attn
    if not _needs_package(model):
        return "plain"
    return "diff_v2" if model["architecture"].startswith("diffvit2") else "diff"  # the defaults of the variants


def _front_matter(model: dict, records: Records, repo: str) -> str:
    results, result = [], records.result
    if result:
        shared: dict[str, Any] = dict(
            task_type="image-classification",
            dataset_type=records.hub_dataset or "folder",
            dataset_name=printable(records.dataset) or "folder",
            dataset_split=result["test_split"],
        )
        results = [
            EvalResult(
                metric_type=metric.kind, metric_value=round(metric.value, 4), metric_name=_full_name(metric, result),
                **shared,
            )
            for metric in result_metrics(result)
        ]  # fmt: skip
    tags = ["timm", "image-classification", "diffvit_timm"]
    if _attention(model, result) in ("diff", "diff_v2"):
        tags.append("differential-attention")
    data = ModelCardData(
        **_licence(model, records.config),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=tags,
        base_model=_base_model(records.config),
        datasets=[records.hub_dataset] if records.hub_dataset else None,
        model_name=repo.split("/")[-1],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _full_name(metric: Metric, result: dict) -> str:
    """Return the name of a metric, with its interval if it has one."""
    if metric.interval is None:
        return metric.name
    low, high = metric.interval
    interval = f"95 % interval {low:.4f} to {high:.4f}, {result['test_images']} images, seed {result['seed']}"
    return f"{metric.name} ({interval})"


def _licence(model: dict, config: dict) -> dict[str, Any]:
    """Return the licence of the pretrained weights; that of timm's own cards for weights that began at random."""
    if config and not config.get("pretrained"):
        return licence_fields("apache-2.0")
    return licence_fields(model["pretrained_cfg"].get("license"))


def _description(model: dict, records: Records) -> str:
    config, result = records.config, records.result
    architecture = code_span(model["architecture"])
    if not _needs_package(model):
        architecture += ", which is part of timm"
    attention = {
        "diff": f"It uses differential attention ({PAPER}), which subtracts a second attention map from the first.",
        "diff_v2": f"It uses version 2 of differential attention ({VERSION_2}), which subtracts a second attention map "
        "from the first.",
    }
    sentences = [
        f"This is an image classifier for [timm](https://github.com/huggingface/pytorch-image-models). Its "
        f"architecture is {architecture}.",
        attention.get(_attention(model, result), ""),
    ]
    conversion = result.get("conversion") or {}
    if base := _base_model(config):
        sentences.append(f"It is based on the pretrained weights of [{base}](https://huggingface.co/{base}).")
        if method := conversion.get("method"):
            sentences.append(f"These were converted to differential attention with the method {code_span(method)}.")
    elif config and not config.get("pretrained"):
        sentences.append("It was trained from random weights.")
    if rank := config.get("lora"):
        sentences.append(
            f"Its blocks were fine-tuned with [LoRA](https://arxiv.org/abs/2106.09685) of rank {escaped(str(rank))}, "
            "which is merged into its weights."
        )
    sentences.append(_conversion_report(conversion))
    return " ".join(sentence for sentence in sentences if sentence)


def _conversion_report(conversion: dict) -> str:
    """Return one sentence with the figures that the conversion report has."""
    formats = {
        "agreement": "the top-1 class is the same for {:.1%} of them",
        "kl": "the KL divergence of the class probabilities is {:.4g} nats",
        "output_error": "the relative error of the outputs is {:.4g}",
    }
    figures = [text.format(conversion[key]) for key, text in formats.items() if conversion.get(key) is not None]
    if not figures:
        return ""
    return (
        f"Before any training, the converted model was compared with the original on {conversion['images']} images: "
        f"{'; '.join(figures)}."
    )


def _usage(model: dict, repo: str, path_in_repo: str) -> str:
    architecture = printable(model["architecture"])
    imports, explanation = "import timm\nfrom PIL import Image", ""
    if _needs_package(model):
        imports = f"import diffvit_timm  # registers {architecture} with timm\n{imports}"
        explanation = (
            f"timm itself does not have the architecture {code_span(architecture)}. Importing the package "
            "`diffvit_timm` registers it, so this import must come before `timm.create_model`.\n\n"
        )
    name = f"hf-hub:{repo}"
    if path_in_repo:
        name = "local-dir:OUT/best"
        command = shlex.join(["diffvit", "pull", repo, "OUT", "--path-in-repo", path_in_repo])
        explanation += f"Fetch this run from its folder in the repository:\n\n{code_block(command, 'sh')}\n\n"
    mode = "L" if model["pretrained_cfg"]["input_size"][0] == 1 else "RGB"
    activation = ".sigmoid()" if _is_multi_label(model) else ".softmax(-1)"
    names = '\nnames = model.pretrained_cfg["label_names"]' if model.get("label_names") else ""
    return f"""## Use

{explanation}```python
{imports}

model = timm.create_model("{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("image.jpg").convert("{mode}")
probabilities = model(transform(image)[None]){activation}  # (1, {int(model["num_classes"])}){names}
```"""


def _training(records: Records) -> str:
    config, environment, result = records.config, records.environment, records.result
    if not config or not environment:
        return ""
    hardware = ", ".join(environment["gpus"]) or f"{environment['threads']} CPU threads"
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    duration = f" and took {counted(round(result['seconds'] / 60), 'minute')}" if "seconds" in result else ""
    shown = {name: value for name, value in config.items() if name != "output"}
    options = yaml.safe_dump(shown, sort_keys=False, width=10**6)  # in ASCII: invisible characters as escapes
    longer = ""
    if restarts := result.get("restarts"):
        places = ", ".join(f"{update:,}" for update in restarts)
        longer = (
            f" This command trained a finished run for longer: the schedule of the learning rate started anew after "
            f"update {places} of {result['updates']:,}."
        )
    ran = f"It ran on {escaped(hardware)}{duration}, with {escaped(versions)}.{longer}"
    return f"""## Training

This command produced the run:

{code_block(printable(environment["command"]), "sh")}

{ran} The folder `run/` contains the logs and the training curves. Paths are shortened to their last parts.

<details><summary>All options</summary>

{code_block(options, "yaml")}

</details>"""


def _figures(files: Sequence[str], has_one: bool) -> str:
    """Return the pictures; `has_one` as in `_limits`."""
    pictures = [name for name in files if name.startswith("run/attention/")]
    text = "## Training curves\n\n![training curves](run/training.png)" if "run/training.png" in files else ""
    if "run/predictions.png" in files:
        text += (
            "\n\n## Predictions\n\n![predictions](run/predictions.png)\n\nTest images, drawn at random"
            f"{DRAWN if has_one else DRAWN_OF_SEVERAL}"
        )
    if pictures:
        text += (
            f"\n\n## Attention\n\n![attention]({quote(pictures[-1])})\n\nEach row shows a validation image and three "
            "heat maps: the attention of the last layer (mean over the heads), the attention through all layers "
            f"(rollout), and the evidence for {'the' if has_one else 'a'} class of the image (computed from gradients)."
        )
    return text.strip()


def _limits(records: Records, has_one: bool) -> str:
    """Return the limits of the model; `has_one` says whether every image has exactly one class."""
    config, result = records.config, records.result
    dataset = escaped(records.dataset) or "its training data"
    licence = DATA_LICENCES.get(records.hub_dataset or "", "the one that its authors chose")
    sentences = [
        f"The model knows only the classes of {dataset}{', and it assigns one of them to every image' * has_one}.",
        "It was tested on images that resemble its training images." if result else "",
        f"It was not tested for fairness or safety. The licence of the dataset is {licence}.",
    ]
    if not config or config.get("pretrained"):
        sentences.append("The pretrained weights that it is based on have the licence of their authors.")
    return "## Limits\n\n" + " ".join(sentence for sentence in sentences if sentence)
