"""A short part of the fault campaign; the whole one is run by hand: python tests/campaign.py."""

import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).with_name("campaign.py")


def test_a_short_campaign_has_no_traceback_and_nothing_silent_or_stuck():
    command = [sys.executable, str(CAMPAIGN), "kills", "configs", "images", "layouts", "--scale", "0.03"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["section", "tried", "right", "one", "line", "traceback", "silent", "stuck"]
    tried = {row.split()[0]: [int(number) for number in row.split()[1:]] for row in rows}
    assert {name: numbers[0] for name, numbers in tried.items()} == {
        "kills": 1,
        "configs": 9,
        "images": 1,
        "layouts": 15,
    }
    assert all(numbers[3:] == [0, 0, 0] and sum(numbers[1:3]) == numbers[0] for numbers in tried.values())
