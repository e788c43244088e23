"""The stage `report`: the rows of all stages as tables and sentences in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import write_atomically
from .candidates import OURS, PLAIN
from .checks import failed_checks
from .rows import TIME_LIMIT, read_rows
from .settings import STAGES
from .verdicts import kernel_verdicts, target_sentences

__all__ = ["report_text", "write_report"]

Row = Mapping[str, Any]

SETTINGS_NAMES = {"img_size": "pixels"}
NETWORK_MODES = {"throughput": "Throughput", "latency": "Latency", "graph": "CUDA graph"}
NETWORK_SETTINGS = ("model", "img_size", "step", "precision", "batch")


def write_report(folder: Path) -> str:
    """Write report.md into the folder of the rows; returns its text.

    Raises:
        InputError: the folder has no rows.
    """
    stages: dict[str, list[dict[str, Any]]] = {stage: read_rows(folder, stage) for stage in STAGES}
    if not any(stages.values()):
        raise InputError(f"`output={folder}` has no rows to report: run another stage first")
    text = report_text(stages)
    write_atomically(folder / "report.md", text)
    return text


def report_text(stages: Mapping[str, Sequence[Row]]) -> str:
    """Return the report in Markdown.

    Args:
        stages: rows of each stage by its name.
    """
    rows = [row for stage in STAGES for row in stages.get(stage, ())]
    identity = rows[0]["identity"]
    gpu, is_trial = identity["gpu"], identity.get("driver") is None
    parts = [f"# Differential attention on {gpu}", _versions(identity)]
    parts += ["This is a trial on a CPU. Its times say nothing about a GPU."] * is_trial
    parts += [_checks(stages.get("check", ())), _attention(stages.get("attention", ()))]
    for stage, title in (("models-eager", "Networks, eager"), ("models-compiled", "Networks, compiled")):
        parts.append(_networks(title, stages.get(stage, ())))
    parts += [_trainer(stages.get("trainer", ())), _not_measured(stages), _state(rows)]
    attention, eager = stages.get("attention", ()), stages.get("models-eager", ())
    if not is_trial:
        parts.append("## Verdict on the kernel\n\n" + _list(kernel_verdicts(attention)))
        parts.append("## Targets\n\n" + _list(target_sentences(gpu, attention, eager)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _versions(identity: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in identity.items() if name != "gpu" and value) + "."


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "results" in row]


def _number(value: float | None, text: str = "{:.2f}") -> str:
    return "" if value is None else text.format(value)


def _checks(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    done = [row for row in rows if "passed" in row]
    passed = sum(row["passed"] for row in done)
    lines = [f"{passed} of {len(done)} checks passed, and {len(rows) - len(done)} were not measured."]
    if any(row.get("interpreter") for row in rows):
        lines.append("The kernels ran in Triton's interpreter.")
    unused = sum(row.get("has_kernel") is False for row in rows)
    if unused:
        lines.append(f"In {unused} checks `has_kernel` says no, and the kernel was called directly.")
    failed = failed_checks(rows)
    return "## Checks\n\n" + " ".join(lines) + ("\n\n" + _list(failed) if failed else "")


def _attention(rows: Sequence[Row]) -> str:
    rows = _measured(rows)
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["results"]))
    names.sort(key=lambda name: (name in PLAIN, name != OURS))
    text = (
        "## Attention alone\n\nA cell is the speed relative to plain attention by the reference backend (1 is equally "
        "fast): the median of the paired ratios of the rounds. The times are those of the GPU with a cold L2 cache, of "
        "a CUDA graph where one could be captured (* marks those where it could not)."
    )
    for step in dict.fromkeys(row["settings"]["step"] for row in rows):
        own = [row for row in rows if row["settings"]["step"] == step]
        columns = ["attention", "heads", "N", "batch", "precision", "reference", "reference, µs", *names, "drift"]
        lines = []
        for row in own:
            s, results = row["settings"], row["results"]
            shape = [s["attention"], *(str(s[name]) for name in ("heads", "tokens", "batch", "precision"))]
            cells = [_attention_cell(results.get(name, {})) for name in names]
            time = _number(results[row["reference"]]["median_us"], "{:.1f}")
            lines.append([*shape, row["reference"], time, *cells, _number(row["drift"])])
        text += f"\n\n### {step.capitalize()}\n\n{_table(columns, lines)}"
    return text + _overheads(rows, names) + _unavailable(rows)


def _attention_cell(result: Mapping[str, Any]) -> str:
    star = "" if result.get("captured", True) else "*"
    return _number(result.get("of_reference")) + star


def _overheads(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return the table of the times of eager calls with a batch of one, which are those of Python."""
    own = [row for row in rows if any("overhead_us" in result for result in row["results"].values())]
    if not own:
        return ""
    lines = []
    for row in own:
        s = row["settings"]
        cells = [_number(row["results"].get(name, {}).get("overhead_us"), "{:.0f}") for name in names]
        lines.append([s["attention"], str(s["heads"]), str(s["tokens"]), s["step"], *cells])
    return "\n\n### Time per eager call at batch 1, in µs\n\n" + _table(
        ["attention", "heads", "N", "step", *names], lines
    )


def _unavailable(rows: Sequence[Row]) -> str:
    """Return why candidates have no times, with the number of rows."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, result in row["results"].items():
            if "unavailable" in result:
                key = name, result["unavailable"]
                counts[key] = counts.get(key, 0) + 1
    lines = [f"{name} is unavailable in {count} rows: {why.rstrip('.')}." for (name, why), count in counts.items()]
    return "\n\n" + _list(lines) if lines else ""


def _networks(title: str, rows: Sequence[Row]) -> str:
    rows = _measured(rows)
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["results"]))
    text = (
        f"## {title}\n\nA cell is the speed relative to the plain ViT, and after the slash relative to timm's layer. "
        "Latency: every step is synchronised. Throughput: several steps are queued. CUDA graph: the step is one graph, "
        "so that the GPU never waits for Python; the times are those of the GPU with a cold L2 cache. Peak: MiB that a "
        "step allocates."
    )
    for mode, heading in NETWORK_MODES.items():
        timed = [row for row in rows if any(mode in result for result in row["results"].values())]
        if not timed:
            continue
        columns = [*_titles(NETWORK_SETTINGS), "plain, ms", *names, "drift"]
        lines = []
        for row in timed:
            own = {name: result.get(mode, {}) for name, result in row["results"].items()}
            cells = [_speed_cell(own.get(name, {})) for name in names]
            plain = own.get(names[0], {}).get("median_us")
            drift = _number(row.get("drifts", {}).get(mode))
            lines.append([*_network_settings(row), _number(plain and plain / 1e3), *cells, drift])
        text += f"\n\n### {heading}\n\n{_table(columns, lines)}"
    if any(result.get("peak_mb") for row in rows for result in row["results"].values()):
        lines = []
        for row in rows:
            peaks = (_number(row["results"].get(name, {}).get("peak_mb"), "{:.0f}") for name in names)
            lines.append([*_network_settings(row), *peaks])
        text += "\n\n### Peak memory\n\n" + _table([*_titles(NETWORK_SETTINGS), *names], lines)
    return text + _unavailable(rows)


def _titles(settings: Iterable[str]) -> list[str]:
    return [SETTINGS_NAMES.get(name, name) for name in settings]


def _network_settings(row: Row) -> list[str]:
    return [str(row["settings"][name]) for name in NETWORK_SETTINGS]


def _speed_cell(result: Mapping[str, Any]) -> str:
    return " / ".join(_number(result[name]) for name in ("of_plain", "of_timm") if name in result)


def _trainer(rows: Sequence[Row]) -> str:
    rows = _measured(rows)
    lines = []
    for row in rows:
        s = row["settings"]
        for name, result in row["results"].items():
            low, high = result["lowest_and_highest"]
            speed = f"{result['images_per_second']:.0f} ({low:.0f} to {high:.0f})"
            lines.append([s["model"], name, s["precision"], str(s["batch"]), speed, _number(result["of_plain"])])
    if not lines:
        return ""
    columns = ["model", "network", "precision", "batch", "images per second (lowest to highest)", "of plain"]
    return f"## Trainer\n\nMedian of {rows[0]['rounds']} trainings each.\n\n" + _table(columns, lines)


def _not_measured(stages: Mapping[str, Sequence[Row]]) -> str:
    lines = []
    for stage in STAGES:
        left = [row for row in stages.get(stage, ()) if "not_measured" in row]
        late = sum(row["not_measured"] == TIME_LIMIT for row in left)
        if late:
            lines.append(f"{stage}: {late} rows were not measured: {TIME_LIMIT}.")
        for row in left:
            if row["not_measured"] != TIME_LIMIT:
                settings = ", ".join(f"{SETTINGS_NAMES.get(k, k)} {v}" for k, v in row["settings"].items())
                lines.append(f"{stage}: {settings}: not measured: {row['not_measured']}.")
    return "## Not measured\n\n" + _list(lines) if lines else ""


def _state(rows: Sequence[Row]) -> str:
    """Return the range of clocks, temperature and power, and of the drift."""
    states = [row[when] for row in rows for when in ("before", "after") if row.get(when)]
    lines = []
    for name in dict.fromkeys(name for state in states for name in state):
        values = [state[name] for state in states if state.get(name) is not None]
        if values:
            lines.append(f"{name}: {min(values):.0f} to {max(values):.0f}.")
    drifts = [row["drift"] for row in rows if row.get("drift")]
    if drifts:
        lines.append(
            f"drift of the reference (second half of the rounds / first half): {min(drifts):.2f} to {max(drifts):.2f}."
        )
    return "## State of the GPU\n\n" + _list(lines) if lines else ""
