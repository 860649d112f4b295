"""In processes of their own: what malloc was told holds for good."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from modeling_cue.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    return torch.ones(2**24).sum().item()  # 64 MiB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_tensors_are_not_mapped_anew():
    faults = {}
    for what in ("keep", "default"):
        command = [sys.executable, "-c", SCRIPT, what]
        faults[what] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["default"] > 100
    assert faults["keep"] < faults["default"] / 2  # not 0: a system short of memory takes pages back


def test_other_systems_are_left_alone(monkeypatch):
    from modeling_cue.training import allocator

    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
