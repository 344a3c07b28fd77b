"""Tests that need eight devices, in one process that has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
MARK = "mark.eight_devices"
LEAST = 15  # of them, in all files


def test_tests_that_need_eight_devices_pass_on_them():
    files = [
        str(file)
        for file in sorted(TESTS.rglob("test_*.py"))
        if file != Path(__file__).resolve() and MARK in file.read_text()
    ]
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "eight_devices", *files],
        cwd=TESTS.parent,
        env={**outside, "CERTMASK_JAX_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed, \d+ deselected in ", last)
    assert passed, last  # none was skipped
    assert int(passed[1]) >= LEAST
