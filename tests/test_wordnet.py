"""The WordNet benchmark on small random trees: it learns the closure that it never sees, and refuses bad files."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

NODES = 60


@pytest.fixture(scope="module")
def wordnet():
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("wordnet")
    sys.path.remove(folder)


def write(path, **columns):
    parquet.write_table(pa.table(columns), path)


@pytest.fixture
def tree(tmp_path):
    """A random tree with the validation pairs that it implies and ten wrong ones for each; basic edges in training."""
    random = np.random.default_rng(0)
    parent = [0, *(int(random.integers(0, node)) for node in range(1, NODES))]
    closure = set()
    for node in range(1, NODES):
        above = node
        while above:
            above = parent[above]
            closure.add((node, above))
    hidden = sorted(closure - {(node, parent[node]) for node in range(1, NODES)})
    other = [(a, b) for a in range(NODES) for b in range(NODES) if a != b and (a, b) not in closure]
    wrong = [other[i] for i in random.permutation(len(other))[: 10 * len(hidden)]]
    folder = tmp_path / "mammals"
    folder.mkdir()
    write(folder / "nodes.parquet", node=list(range(NODES)), lemma=[f"n{node}" for node in range(NODES)])
    write(folder / "train_00.parquet", child=list(range(1, NODES)), parent=parent[1:])
    child, above = zip(*hidden, *wrong, strict=True)
    labels = [1] * len(hidden) + [0] * len(wrong)
    write(folder / "val.parquet", child=child, parent=above, label=labels)
    return folder


def test_the_closure_follows_from_basic_edges(wordnet, tree):
    for name in ("cones", "cones-no-start"):
        run = wordnet.measure(name, tree, tree / "val.parquet", 5, 0, 0, 300)
        # To say yes to every pair gives 2 / (2 + 10).
        assert run["f1"] > (95 if name == "cones" else 50), name
    again = wordnet.measure("cones", tree, None, 5, 0, 0, 20)
    assert again["f1"] == wordnet.measure("cones", tree, None, 5, 0, 0, 20)["f1"]


@pytest.mark.parametrize("name", ["order", "entailment", "disks"])
def test_baselines_learn_the_edges_they_see(wordnet, tree, name):
    taxonomy = wordnet.read_taxonomy(tree, 0)
    scores = wordnet.METHODS[name](taxonomy, 5, 0, 400, 64)
    edges = taxonomy.edges
    assert (scores(edges) > scores(edges[:, ::-1])).mean() > 0.9


def test_bad_data_is_refused(wordnet, tree):
    nodes = NODES
    with pytest.raises(FileNotFoundError, match="train_25.parquet is not there"):
        wordnet.read_taxonomy(tree, 25)
    write(tree / "bad.parquet", child=[1], label=[1])
    with pytest.raises(ValueError, match="no column parent; its columns are child, label"):
        wordnet.read_pairs(tree / "bad.parquet", nodes)
    write(tree / "far.parquet", child=[1, nodes], parent=[0, 0], label=[1, 0])
    with pytest.raises(ValueError, match="names node 60, but nodes are 0 to 59"):
        wordnet.read_pairs(tree / "far.parquet", nodes)
    write(tree / "one.parquet", child=[1], parent=[0], label=[1])
    with pytest.raises(ValueError, match="labels must be 0 and 1, both present"):
        wordnet.read_pairs(tree / "one.parquet", nodes)
    write(tree / "half.parquet", child=[1, 2], parent=[0, 0], label=[1, 0])
    with pytest.raises(ValueError, match="two pairs of each label are needed"):
        wordnet.read_pairs(tree / "half.parquet", nodes)
    write(tree / "share.parquet", child=[1, 2], parent=[0, 0], label=[0.7, 1])
    with pytest.raises(ValueError, match="the column label holds 0.7; whole numbers are needed"):
        wordnet.read_pairs(tree / "share.parquet", nodes)
    write(tree / "null.parquet", child=[1, None], parent=[0, 0], label=[1, 0])
    with pytest.raises(ValueError, match="the column child has 1 empty cells"):
        wordnet.read_pairs(tree / "null.parquet", nodes)
    write(tree / "train_10.parquet", child=[1, 2, 3, 4], parent=[2, 3, 1, 0])
    with pytest.raises(ValueError, match=r"cycle: .*1 \(n1\) is a 2 \(n2\)"):
        wordnet.read_taxonomy(tree, 10)


def test_thresholds_take_all_equal_scores(wordnet):
    scores, labels = np.array([3.0, 2.0, 2.0, 1.0]), np.array([1, 1, 0, 0])
    threshold = wordnet.best_threshold(scores, labels)
    assert 1 < threshold < 2
    assert wordnet.f1_score(scores, labels, threshold) == pytest.approx(0.8)


def test_published_rows_stand_beside_nouns_only(wordnet):
    runs = [{"method": "cones", "dim": 5, "percent": 10, "f1": f1} for f1 in (90.0, 92.0)]
    text = wordnet.table(runs, ["cones"], [5], [0, 10], True)
    assert "| cones, this package | - | 91.0 ± 1.4 |" in text
    assert "| hyperbolic entailment cones, published * | 29.2 | 80.1 |" in text
    assert "published" not in wordnet.table(runs, ["cones"], [5], [10], False)
