"""A fault campaign: nothing may end in a traceback, hang, or go wrong in silence.

    python tests/campaign.py                          # everything, in minutes
    python tests/campaign.py kills runs --seed 7      # some sections, with other random faults
    python tests/campaign.py --scale 0.1              # a tenth of the random faults

Each trial runs in a process of its own with a time limit, and has one of these outcomes:
    right       the result is the one without the fault
    one line    the fault is refused by one error that names it
    traceback   any other exception
    silent      a wrong result without a word
    stuck       the time limit was reached
The exit code is 1 if there is any of the last three.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "faults"), str(TESTS / "hub")]

# Before anything imports huggingface_hub and torch, which read these once.
with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]  # of the Hub on loopback that a trial starts
os.environ |= {
    "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": f"http://127.0.0.1:{PORT}", "HF_TOKEN": "hf_of_the_user",
    "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip

OUTCOMES = {0: "right", 2: "one line", 1: "traceback", 3: "silent"}
FAILURES = ("traceback", "silent", "stuck")
LIMIT = 120.0  # seconds per trial

Trial = tuple[str, Callable[[], object]]


def attempt(trial: Callable[[], object], log: Path, limit: float = LIMIT) -> str:
    """Run a trial in a forked process; what it prints goes to a file. Returns its outcome."""
    pid = os.fork()
    if not pid:
        _run(trial, log)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return OUTCOMES.get(os.waitstatus_to_exitcode(status), "traceback")
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "stuck"


def _run(trial: Callable[[], object], log: Path) -> None:
    """Run a trial in this process, which ends with it."""
    from diffvit_timm.errors import InputError

    os.setpgid(0, 0)  # so that a stuck trial ends with its own children
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        trial()
        code = 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if len(str(error).splitlines()) == 1 else 1
    except AssertionError:
        traceback.print_exc()
        code = 3
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def run_section(name: str, trials: Iterable[Trial], folder: Path) -> Counter:
    """Run the trials of a section, print a row of the table, and print every failure."""
    counts: Counter = Counter()
    for number, (title, trial) in enumerate(trials):
        log = folder / f"{number}.log"
        outcome = attempt(trial, log)
        counts[outcome] += 1
        if outcome in FAILURES:
            print(f"  {outcome}: {title}\n    {' '.join(log.read_text(errors='replace').split()[-40:])}", flush=True)
    columns = "".join(f"{counts[outcome]:10d}" for outcome in ("right", "one line", *FAILURES))
    print(f"{name:20s}{counts.total():8d}{columns}", flush=True)
    return counts


def list_sections(root: Path, rng: random.Random, scale: float) -> dict[str, Callable[[], Iterable[Trial]]]:
    """Return the sections of the campaign by their names."""
    from config_faults import config_faults
    from hub_faults import hub_faults
    from layout_faults import layouts
    from mutations import damaged_images
    from odd_values import odd_values
    from protocol_faults import protocol_faults
    from run_faults import RunFaults

    def count(full: int) -> int:
        return max(1, round(scale * full))

    def events() -> Iterable[Trial]:
        faults = RunFaults(root / "events")
        numbers = list(range(1, faults.events + 1))
        return faults.kills_at_events(numbers if scale >= 1 else sorted(rng.sample(numbers, count(len(numbers)))))

    return {
        "kills": lambda: RunFaults(root / "kills").random_kills(count(40), rng),
        "events": events,
        "hub": lambda: hub_faults(root / "hub", PORT, count(300), rng),
        "configs": lambda: config_faults(root / "configs", count(300), rng),
        "images": lambda: damaged_images(count(40), rng),
        "layouts": lambda: layouts(root / "layouts", count(500), rng),
        "values": lambda: odd_values(root / "values", count(20), rng),
        "protocols": lambda: protocol_faults(root / "protocols", count(300), rng),
        "runs": lambda: RunFaults(root / "runs").damages(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HOME": folder}
        sections = list_sections(Path(folder), random.Random(options.seed), options.scale)
        if unknown := set(options.sections) - set(sections):
            parser.error(f"no section {', '.join(unknown)}: choose from {', '.join(sections)}")
        columns = "".join(f"{outcome:>10s}" for outcome in ("right", "one line", *FAILURES))
        print(f"{'section':20s}{'tried':>8s}{columns}", flush=True)
        total: Counter = Counter()
        for name in options.sections or sections:
            (Path(folder) / name).mkdir()
            total += run_section(name, sections[name](), Path(folder) / name)
    sys.exit(any(total[outcome] for outcome in FAILURES))


if __name__ == "__main__":
    main()
