"""The house: imports point one way, the Hub closure stays flat, the public names are pinned."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_cue

ROOT = Path(__file__).resolve().parents[1]
FLAT = sorted(p for p in (ROOT / "modeling_cue").glob("*.py") if p.name != "__init__.py")
# Search and classification do not travel: nothing that does may import them.
SEARCH = [p for p in FLAT if p.stem.split("_")[0] == "index"]
STAYS = [*SEARCH, ROOT / "modeling_cue" / "zero_shot.py"]
CLOSURE = [p for p in FLAT if p not in STAYS]
# Each file's floor: it may import what lies on a lower one. Files of one floor may build on one another.
FLOORS = {
    "configuration_cue": 0,
    "cone_type": 1, "sphere": 1, "cones": 1, "contrastive": 1,
    "media_files": 0, "media_image": 1, "media_pixels": 1, "media_audio": 1, "media_video": 1,
    "media_extract": 0, "processing_parts": 1, "processing_inputs": 1, "processing_base": 1, "dropout": 1, "saving": 0,
    "encoders_run": 2, "encoders_audio": 2, "encoders": 2, "heads": 2, "composition": 2, "processing_cue": 2,
    "sentence_transformers_cue": 2,
    "tower_sources": 2,
    "modeling_base": 3, "modeling_towers": 3, "modeling_cue": 3,
    "index_vectors": 2, "index_items": 2, "index_files": 3, "index_search": 3, "index": 4,
    "zero_shot": 4,
}  # fmt: skip
# Losses and metrics know cones and one another, never the model or processes.
TENSORS_ONLY = (
    "relations", "losses", "tiled_losses", "metrics", "metrics_calibration", "metrics_cones", "metrics_counts",
    "metrics_hard", "metrics_queries", "metrics_retrieval",
)  # fmt: skip


def siblings(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}


def absolute_imports(path: Path) -> set[str]:
    """Top-level packages that a file demands, as `transformers` sees them: what stands in a `try` is not demanded."""
    tree = ast.parse(path.read_text())
    forgiven = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in forgiven:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FLAT, ids=lambda p: p.stem)
def test_imports_point_down(path):
    assert path.stem in FLOORS, f"give {path.name} a floor"
    for name in siblings(path):
        assert FLOORS[name] <= FLOORS[path.stem], f"{path.stem} must not import {name}"


def test_search_knows_cones_only_and_nothing_that_travels_knows_what_does_not():
    search, stays = ({p.stem for p in paths} for paths in (SEARCH, STAYS))
    for path in SEARCH:
        assert siblings(path) <= search | {"cone_type", "cones"}
    for path in CLOSURE:
        assert not siblings(path) & stays, path.stem


@pytest.mark.parametrize("name", ["faiss", "sentence_transformers", "mteb"])
def test_importing_the_package_imports_no_extra(name):
    code = f"import sys, modeling_cue; sys.exit({name!r} in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode


@pytest.mark.parametrize("path", CLOSURE, ids=lambda p: p.stem)
def test_the_closure_is_flat_and_asks_for_little(path):
    text = path.read_text()
    assert not re.search(r"^\s*from\s+\.\s+import|^\s*from\s+\.\.", text, re.MULTILINE)
    # `transformers` copies what this expression finds, in docstrings too.
    for name in re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE):
        assert (path.parent / f"{name}.py").is_file(), f"{path.name} names a sibling {name!r} that is not there"
    own = {"configuration_cue"} if path.stem == "configuration_cue" else set()
    allowed = {"torch", "transformers", "numpy", "PIL"} | own | set(sys.stdlib_module_names)
    assert absolute_imports(path) <= allowed


def test_the_processor_reaches_no_configuration():
    seen, todo = set(), {"processing_cue"}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= siblings(ROOT / "modeling_cue" / f"{name}.py") - seen
    assert "configuration_cue" not in seen
    assert "modeling_cue" not in seen


@pytest.mark.parametrize("name", TENSORS_ONLY)
def test_losses_and_metrics_know_neither_model_nor_processes(name):
    tree = ast.parse((ROOT / "modeling_cue" / "training" / f"{name}.py").read_text())
    imported = {(n.level, n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    allowed = {(2, "cones"), (2, "contrastive"), (2, "sphere")} | {(1, other) for other in TENSORS_ONLY}
    assert {pair for pair in imported if pair[0]} <= allowed
    assert not any("distributed" in str(module) for _, module in imported)


@pytest.mark.parametrize("path", [*CLOSURE, ROOT / "modeling_cue" / "__init__.py"], ids=lambda p: p.stem)
def test_nothing_that_travels_imports_training(path):
    assert "training" not in {n.split(".")[0] for n in siblings(path)}


def test_public_names_are_pinned():
    assert sorted(modeling_cue.__all__) == [
        "CUEConfig", "CUEIndex", "CUEModel", "CUEOutput", "CUEPreTrainedModel", "CUEProcessor", "Cone",
        "ZeroShotClassifier", "angle", "check_cone", "complement", "containment_margin", "containment_probability",
        "contains", "join", "join_many", "log_volume", "meet", "meet_hull", "membership_margin", "overlaps",
        "pairwise_angle", "pairwise_containment_margin", "pairwise_containment_probability", "pairwise_contains",
        "pairwise_overlaps",
    ]  # fmt: skip
    for name in modeling_cue.__all__:
        assert getattr(modeling_cue, name).__doc__, name


def test_metadata_stands_in_setup_cfg():
    assert "[project]" not in (ROOT / "pyproject.toml").read_text()
