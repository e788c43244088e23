"""The identity of a measurement (GPU and versions), and the state of the GPU at one moment.

nvidia-smi is only asked. Nothing here changes a setting of the GPU.
"""

import hashlib
import importlib.metadata
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import timm
import torch

from ... import __version__, layers
from ..timing import hardware_name

__all__ = ["DECISIVE", "gpu_state", "identity"]

STATE = {
    "sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "temperature_c": "temperature.gpu", "power_w": "power.draw"
}  # fmt: skip
# Parts of the identity that must agree if rows are to stand in one report.
DECISIVE = ("gpu", "torch", "triton", "timm", "diffvit_timm", "layers")
FRESH = 1.0  # seconds for which a reading of the state is reused, because nvidia-smi can take as long
_last_state: dict[str, tuple[float, dict[str, float | None]]] = {}


def identity(device: str) -> dict[str, str | None]:
    """Return the names and versions of everything that a time depends on.

    `layers` is a checksum of the source of the layers, which changes more often than the version of the package.
    """
    is_cuda = torch.device(device).type == "cuda"
    return {
        "gpu": hardware_name(device).partition(",")[0],
        "driver": _query(device, "driver_version") if is_cuda else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "timm": timm.__version__,
        "diffvit_timm": __version__,
        "layers": _layers_checksum(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _layers_checksum() -> str:
    checksum = hashlib.sha256()
    for path in sorted(Path(layers.__file__).parent.rglob("*.py")):
        checksum.update(path.read_bytes())
    return checksum.hexdigest()[:12]


def gpu_state(device: str) -> dict[str, float | None]:
    """Return the clocks in MHz, the temperature in degrees Celsius and the power in watts; None: unknown or a CPU."""
    if torch.device(device).type != "cuda":
        return dict.fromkeys(STATE)
    read_at, state = _last_state.get(device, (0.0, {}))
    if time.monotonic() - read_at > FRESH or not state:
        values = (_query(device, ",".join(STATE.values())) or "").split(",")
        numbers = [_number(value) for value in values]
        is_known = len(numbers) == len(STATE)
        state = dict(zip(STATE, numbers, strict=True)) if is_known else dict.fromkeys(STATE)
        _last_state[device] = time.monotonic() if is_known else math.inf, state  # no answer: it is not asked again
    return dict(state)


def _query(device: str, fields: str) -> str | None:
    """Ask nvidia-smi about the GPU; None if it does not answer."""
    index = torch.device(device).index or 0
    properties: Any = torch.cuda.get_device_properties(index)
    # The UUID is right even if CUDA_VISIBLE_DEVICES changes the order of the GPUs.
    for name in (f"GPU-{getattr(properties, 'uuid', '')}", str(index)):
        command = ["nvidia-smi", f"--id={name}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip().splitlines()[0]
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # such as [N/A]
        return None
