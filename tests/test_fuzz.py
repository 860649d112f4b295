"""Damaged files end in clear errors: see `fuzz`. CUE_FUZZ=5000 tries so many of each kind, in place of a few."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import KINDS, damaged

FEW = {"image": 300, "audio": 120, "video": 120, "parquet": 40, "yaml": 60}
TESTS = Path(__file__).parent


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind):
    count = int(os.environ.get("CUE_FUZZ", FEW[kind]))
    command = [sys.executable, "-W", "ignore", str(TESTS / "fuzz.py"), kind, str(count), "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120 + 2 * count)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(kind, found)
    errors = {name: n for name, n in found.items() if name.endswith("Error")}
    assert found["read"] + sum(errors.values()) == count
    assert sum(errors.values()) > count / 10  # that something is damaged is noticed


def test_damage_is_damage():
    import numpy as np

    rng = np.random.default_rng(0)
    assert sum(damaged(bytes(range(256)), rng) != bytes(range(256)) for _ in range(100)) > 95
