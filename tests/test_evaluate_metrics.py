import re
from pathlib import Path

import evaluate
import pytest
import torch
from embedded import world
from huggingface_hub import ModelCard

from modeling_cue.training.evaluate_metrics import ConeMetric, RetrievalMetric
from modeling_cue.training.metrics import compute_all, cone_metrics, retrieval_metrics


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def columns(rows, kind, names):
    sets = {name: [[i for i in line if i] for line in getattr(rows, name).tolist()] for name in
            ("requires", "implies", "words")}  # fmt: skip
    everything = {"kind": [kind] * len(rows), "axis": rows.cone.axis.numpy(), "radius": rows.cone.radius.numpy(),
                  "id": rows.ids.tolist(), **sets}  # fmt: skip
    return {name: everything[name] for name in names}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric must not open a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("metric_class", [RetrievalMetric, ConeMetric])
def test_evaluate_metrics_give_the_same_figures_batch_by_batch(metric_class, generator, tmp_path):
    embedded = world(generator)
    metric = metric_class(cache_dir=str(tmp_path))
    names = list(metric.features)
    for kind, rows in embedded.items():
        for start in range(0, len(rows), 7):
            metric.add_batch(**columns(rows[start : start + 7], kind, names))
    expected = compute_all(embedded)
    found = metric.compute()
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-9)
    wanted = retrieval_metrics(embedded) if metric_class is RetrievalMetric else cone_metrics(embedded)
    assert set(wanted) <= set(found)
    assert any(key.startswith("composition_R@") for key in found) == (metric_class is ConeMetric)


@pytest.mark.usefixtures("no_network")
def test_evaluate_metrics_compute_in_one_call_and_keep_large_ids(tmp_path):
    metric = RetrievalMetric(cache_dir=str(tmp_path))
    large = 2**63 - 1
    found = metric.compute(kind=["text", "text", "image", "image"], axis=[[1.0, 0.0], [0.0, 1.0]] * 2,
                           id=[large, large - 1] * 2)  # fmt: skip
    assert found["rsum"] == 6
    assert found["t2i_mAP@R"] == 1


MODULES = {"cue_retrieval": RetrievalMetric, "cue_cones": ConeMetric}
FOLDER = Path(__file__).resolve().parents[1] / "metrics"


@pytest.mark.usefixtures("no_network")
def test_modules_load_from_their_folders_and_combine(generator, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    embedded = world(generator)
    expected = compute_all(embedded)
    both = evaluate.combine([evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path / name)) for name in MODULES])
    for module, metric_class in zip(both.evaluation_modules, MODULES.values(), strict=True):
        assert type(module).__mro__[0].__name__ == metric_class.__name__
    names = {name for module in both.evaluation_modules for name in module.features}
    for kind, rows in embedded.items():
        both.add_batch(**columns(rows, kind, names))
    found = both.compute()
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-9)
    assert {"rsum", "containment_auroc_c2i"} <= set(found)
    for kind, rows in embedded.items():
        both.add_batch(**columns(rows, kind, names))
    calibrated = both.compute(containment_scale=10.0, containment_bias=0.1)
    assert "containment_ece_c2i" in set(calibrated) - set(found)
    parts = [columns(rows, kind, names) for kind, rows in embedded.items()]
    whole = {name: [value for part in parts for value in part[name]] for name in names}
    assert both.compute(**whole) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("name", MODULES)
def test_cards_say_what_runs(name, tmp_path, monkeypatch):
    text = (FOLDER / name / "README.md").read_text()
    assert ModelCard(text, ignore_metadata_errors=False).data.tags == ["evaluate", "metric"]
    monkeypatch.chdir(FOLDER.parent)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    *lines, last = code.strip().splitlines()
    value, _, result = last.partition("  # ")
    there: dict = {}
    exec("\n".join(lines).replace(f'"metrics/{name}"', f'"metrics/{name}", cache_dir={str(tmp_path)!r}'), there)
    assert eval(value, there) == float(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": [[3.0, 0.0], [0.0, 1.0]]}, "norm that is not 1"),
        ({"axis": [[float("nan"), 0.0], [0.0, 1.0]]}, "not finite|not 1"),
        ({"radius": [9.0, 0.1]}, r"radi"),
        ({"requires": [[1], [0]]}, "hold ids from 1 on, 0 is no id: add 1"),
        ({"kind": ["text", "picture"]}, "kind 'picture' is not valid; it must be one of text, phrase, image"),
    ],
)
def test_what_is_no_cone_is_refused(change, message, tmp_path):
    rows = {"kind": ["text", "image"], "axis": [[1.0, 0.0], [0.0, 1.0]], "radius": [0.5, 0.1], "id": [0, 0]}
    rows |= {name: [[], []] for name in ("requires", "implies", "words")} | change
    metric = ConeMetric(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        metric.compute(**{name: rows[name] for name in metric.features})
