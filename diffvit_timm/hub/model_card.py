"""The model card of a run: what it is made from, how, on what, how good it is and how sure, and what it is not for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from timm.models import get_pretrained_cfg

from ..models.diffvit import SOURCES

__all__ = ["BY_HAND", "model_card"]

BY_HAND = "\n<!-- What stands below this line stays when the run is pushed again. -->\n"

# Of datasets of the recipes, where their authors name one.
DATA_LICENCES = {
    "timm/oxford-iiit-pet": "CC BY-SA 4.0",
    "zalando-datasets/fashion_mnist": "MIT",
    "1aurent/BACH": "CC BY-NC-ND 4.0 (no commercial use)",
}

ATTENTION = {
    "diff": "differential attention ([Differential Transformer](https://arxiv.org/abs/2410.05258))",
    "diff_v2": "differential attention, version 2 ([its authors](https://huggingface.co/blog/microsoft/diff-attn-v2))",
    "plain": "plain attention, as the twin of a differential model",
}


def model_card(run: Path, repo: str, files: Sequence[str]) -> str:
    """The card of a run folder, or of a folder of weights, which has less to tell.

    Args:
        run: the folder.
        repo: USER/NAME that it is for.
        files: what the repository will hold.
    """
    weights = run / "best" if (run / "best").is_dir() else run
    model = json.loads((weights / "config.json").read_text())
    result, environment = (_read(run / name) for name in ("result.json", "environment.json"))
    config = yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}
    sections = [
        _front_matter(model, config, result, repo),
        f"# {repo.split('/')[-1]}\n\n{_what_it_is(model, config, result)}",
        _usage(repo),
        _numbers(config, result),
        _training(config, environment, result),
        _pictures(files),
        _limits(config),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _base(config: dict) -> str | None:
    """The checkpoint on the Hub that the weights started from."""
    if not config.get("pretrained"):
        return None
    name = config["model"]
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    if name.startswith("local-dir:"):
        return None
    first = next((tag for tag in SOURCES if tag.split(".")[0] == name), name)  # a variant's default is its first tag
    cfg = get_pretrained_cfg(SOURCES.get(first, first))
    return cfg.hf_hub_id if cfg else None


def _dataset(config: dict) -> str | None:
    """The dataset's name on the Hub; a folder has none."""
    name = config.get("dataset", "")
    folder = name.startswith((".", "~", "/")) or Path(name).is_dir()
    return name if name.count("/") == 1 and not folder else None


def _front_matter(model: dict, config: dict, result: dict, repo: str) -> str:
    results = []
    if result:
        low, high = result["test_interval_95"]
        shared: dict[str, Any] = dict(
            task_type="image-classification",
            dataset_type=_dataset(config) or "folder",
            dataset_name=Path(config["dataset"]).name,
            dataset_split=result["test_split"],
        )
        interval = f"95 % interval {low:.4f} to {high:.4f}, {result['test_images']} images, seed {result['seed']}"
        results = [
            EvalResult(metric_type="accuracy", metric_value=round(result["test_accuracy"], 4),
                       metric_name=f"top-1 accuracy ({interval})", **shared),
            EvalResult(metric_type="accuracy", metric_value=round(result["test_mean_per_class"], 4),
                       metric_name="mean accuracy per class", **shared),
        ]  # fmt: skip
    data = ModelCardData(
        license=model["pretrained_cfg"].get("license", "apache-2.0"),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "differential-attention", "diffvit_timm"],
        base_model=_base(config),
        datasets=[dataset] if (dataset := _dataset(config)) else None,
        model_name=repo.split("/")[-1],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what_it_is(model: dict, config: dict, result: dict) -> str:
    lines = [
        f"`{model['architecture']}` with {ATTENTION.get(result.get('attn', ''), 'attention as its settings say')}."
    ]
    if base := _base(config):
        how = (result.get("conversion") or {}).get("method")
        converted = f", converted by the method `{how}`" if how else ""
        lines.append(f"It starts from [{base}](https://huggingface.co/{base}){converted}.")
    elif config:
        lines.append("It was trained from random weights." if not config["pretrained"] else "")
    kept = {k: v for k, v in (result.get("conversion") or {}).items() if k != "method" and v is not None}
    if kept:
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in kept.items())
        lines.append(f"What the conversion kept before any training: {numbers}.")
    return " ".join(line for line in lines if line)


def _usage(repo: str) -> str:
    return f"""## Use

```python
import timm
import diffvit_timm  # first: it registers the architecture

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
probabilities = model(transform(image)[None]).softmax(-1)  # classes: model.pretrained_cfg["label_names"]
```"""


def _numbers(config: dict, result: dict) -> str:
    if not result:
        return ""
    low, high = result["test_interval_95"]
    rows = [
        ("top-1 accuracy", f"{result['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"),
        ("mean per class", f"{result['test_mean_per_class']:.2%}"),
        ("loss", f"{result['test_loss']:.4f} nats"),
        ("images", f"{result['test_images']:,}, split: {result['test_split']}, evaluated once"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    text = f"## Numbers\n\n| | {Path(config['dataset']).name} |\n|---|---|\n{table}\n\n"
    text += f"One run, seed {result['seed']}; the interval is of the test images, not of other seeds."
    if pairs := result.get("test_confusions"):
        text += " Most often taken for another: " + "; ".join(f"{a} for {b} ({n})" for a, b, n in pairs) + "."
    if result.get("lambda"):
        text += (
            f" Lambda is {min(result['lambda']):.3f} to {max(result['lambda']):.3f} over the layers, and up to "
            f"{max(result['negative_mass']):.1%} of a layer's attention is negative."
        )
    return text


def _training(config: dict, environment: dict, result: dict) -> str:
    if not config or not environment:
        return ""
    hardware = ", ".join(environment["gpus"]) or f"{environment['threads']} CPU threads"
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    seconds = f", {result['seconds'] / 60:.0f} minutes" if "seconds" in result else ""
    options = "\n".join(f"{name}: {value}" for name, value in config.items() if name != "output")
    return f"""## Training

    {environment["command"]}

On {hardware}{seconds}; {versions}. The logs and curves are in `run/`.

<details><summary>All options</summary>

```yaml
{options}
```

</details>"""


def _pictures(files: Sequence[str]) -> str:
    pictures = [name for name in files if name.startswith("run/attention/")]
    text = "## Curves\n\n![training](run/training.png)" if "run/training.png" in files else ""
    if pictures:
        text += (
            f"\n\n## Attention\n\n![attention]({pictures[-1]})\n\nValidation images: what the last layer's heads "
            "attend to, the same through all layers (rollout), and what speaks for the image's class (by gradients)."
        )
    return text.strip()


def _limits(config: dict) -> str:
    dataset = Path(config["dataset"]).name if config else "its data"
    licence = DATA_LICENCES.get(config.get("dataset", ""), "that of their authors")
    return (
        f"## Limits\n\nIt knows the classes of {dataset} and nothing else, and names one of them for any image. It was "
        "measured on images like those that it was trained on, and not for fairness or safety. The licence of "
        f"the data: {licence}; of the checkpoint that it starts from: that of its authors."
    )
