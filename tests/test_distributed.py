"""Two processes give the loss and the gradients of one process with the same global batch, for every loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TERMS = ("info_nce_t2i", "containment_p2c", "containment_c2i", "composition")


def run(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    worker = [sys.executable, str(HERE / "distributed_worker.py"), *map(str, arguments)]
    return subprocess.Popen(worker, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    workers = [run(folder / "one.pt")]
    workers += [run(folder / "two.pt", folder / "meeting", rank, 2) for rank in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    return [torch.load(folder / name) for name in ("one.pt.0", "two.pt.0", "two.pt.1")]


CASES = [(term, moves_axes) for term in TERMS for moves_axes in (False, True)]


@pytest.mark.parametrize("case", [*CASES, ("chunks", 1), ("chunks", 2)], ids=str)
def test_two_processes_equal_one(results, case):
    one, two = (result[case] for result in results[:2])
    torch.testing.assert_close(two[0], one[0], rtol=1e-5, atol=1e-7)
    assert one[0] > 0
    flat_one, flat_two = (torch.cat([g[name].flatten() for name in sorted(one[1])]) for g in (one[1], two[1]))
    assert flat_one.norm() > 0
    assert (flat_two - flat_one).norm() / flat_one.norm() < 1e-5
    for name, gradient in one[1].items():
        # A tensor whose gradient cancels to little keeps the rounding of what cancelled.
        torch.testing.assert_close(two[1][name], gradient, rtol=1e-3, atol=1e-5 * flat_one.norm().item())


def test_every_term_is_covered(results):
    assert {key[0] for key in results[0] if isinstance(key, tuple)} == {*TERMS, "chunks"}


def test_two_processes_evaluate_what_one_does_though_one_lacks_a_kind(results):
    one, *both = (result["evaluation"] for result in results)
    assert list(one) == ["text", "phrase", "image", "composed", "pictured", "parts_mean"]
    for found in both:
        assert list(found) == list(one)
        for kind, columns in one.items():
            for column, expected in zip(found[kind], columns, strict=True):
                torch.testing.assert_close(column, expected, rtol=1e-5, atol=1e-6)
