"""CUEIndex beside brute force by the algebra itself: exact, by a graph, saved, memory-mapped; and what it refuses."""

import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch
from cone_cases import cones, law, seeds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from modeling_cue import Cone, CUEIndex, angle, containment_margin, contains, index_search

needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="FAISS is not installed: pip install faiss-cpu"
)
KINDS = ["exact", pytest.param("approximate", marks=needs_faiss)]


def build(items, kind="exact", **metadata):
    index = CUEIndex(items.dim)
    index.add(items, list(range(len(items.radius))), metadata)
    return index if kind == "exact" else index.approximate()


def brute_force(queries, items, relation, k=None):
    """Positions, cosines and margins for each query: the definitions, for every pair.

    Rows are filled up to a multiple of 64, since the last bit of torch's arctangent differs in half-full vectors.
    """
    count = len(items.radius)
    query, item = queries[:, None], items[None, torch.arange(count + -count % 64) % count]
    outer, inner = (item, query) if relation == "containing" else (query, item)
    apart, margin = angle(query.axis, item.axis), containment_margin(outer, inner)
    passed = torch.ones_like(apart, dtype=torch.bool) if relation == "nearest" else contains(outer, inner)
    order = apart[:, :count].argsort(stable=True)
    for row, positions in enumerate(order):
        chosen = positions[passed[row, positions]][:k]
        yield chosen, apart[row, chosen].cos(), margin[row, chosen]


def check(index, queries, items, k):
    found = {
        "nearest": index.nearest(queries, k), "inside": index.inside(queries), "containing": index.containing(queries),
    }  # fmt: skip
    for relation, hits in found.items():
        expected = brute_force(queries, items, relation, k if relation == "nearest" else None)
        if relation == "nearest" and "approximate" in repr(index):
            # Perhaps not the nearest, but k in their order, with their own numbers.
            everything = brute_force(queries, items, relation)
            expected = []
            for hit, (positions, scores, margins) in zip(hits, everything, strict=True):
                met = torch.isin(positions, hit.positions)
                assert met.sum() == k
                expected.append((positions[met], scores[met], margins[met]))
        for hit, true in zip(hits, expected, strict=True):
            assert all(map(torch.equal, (hit.positions, hit.scores, hit.margins), true))
    return found


radii = st.sampled_from([0.0, 1e-7, 1e-4, 0.3, 1.0, math.pi / 2, 2.5, math.pi - 1e-4, math.pi])


@pytest.mark.parametrize("kind", KINDS)
@law
@given(dim=st.sampled_from([2, 3, 16, 384]), count=st.integers(1, 60), seed=seeds, data=st.data())
def test_answers_are_those_of_brute_force(kind, dim, count, seed, data):
    """Radii from 0 to pi, whole spheres, empty cones, many of one axis, queries that are items."""
    random = torch.Generator().manual_seed(seed)
    items = cones(count, dim=dim, seed=seed, widest=data.draw(radii))
    special = torch.tensor(data.draw(st.lists(radii, min_size=count, max_size=count)))
    radius = torch.where(torch.rand(count, generator=random) < 0.3, special, items.radius)
    same = torch.rand(count, generator=random) < 0.3
    axis = torch.where(same[:, None], items.axis[0], items.axis)
    items = Cone(axis, radius, torch.rand(count, generator=random) < 0.1)
    others = cones(4, dim=dim, seed=seed + 1)
    whole = Cone(others.axis, torch.tensor([math.pi, 0.0, math.pi, 0.7]), torch.tensor([False, False, True, True]))
    queries = Cone.cat([items, others, whole])
    check(build(items, kind), queries, items, data.draw(st.integers(1, count)))


def border(dim, count, seed):
    """Pairs one of which lies exactly inside the other as real numbers: the rounding of each decides."""
    inner = cones(count, dim=dim, seed=seed, dtype=torch.float64, widest=0.5)
    side = cones(count, dim=dim, seed=seed + 1, dtype=torch.float64).axis
    side = normalize(side - (side * inner.axis).sum(-1, keepdim=True) * inner.axis, dim=-1)
    apart = torch.linspace(0, 1, count, dtype=torch.float64)[:, None] ** 3
    outer = Cone(apart.cos() * inner.axis + apart.sin() * side, inner.radius + apart[:, 0])
    return outer.float(), inner.float()


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_border_the_algebra_alone_decides(kind, monkeypatch):
    outer, inner = border(24, 400, seed=5)
    items = Cone.cat([outer, inner])
    index, pairs = build(items, kind), contains(outer, inner)
    # Rounding throws about half of the pairs out, so a border that is off by one unit in the last place would show.
    assert 100 < pairs.sum() < 300
    found = check(index, items, items, k=20)
    assert [400 + i in hits.positions for i, hits in enumerate(found["inside"][:400])] == pairs.tolist()
    # Without room for the rounding of inner products some would be lost.
    monkeypatch.setattr(index_search, "slack", lambda dim: 0.0)
    lost = sum(len(a) - len(b) for a, b in zip(found["inside"], index.inside(items), strict=True))
    assert lost > 10


@pytest.mark.parametrize("kind", KINDS)
def test_ties_at_the_last_place_go_by_the_order_of_adding(kind):
    axis = cones(3, dim=8).axis.repeat_interleave(50, 0)[torch.randperm(150, generator=torch.manual_seed(0))]
    items = Cone(axis, torch.full((150,), 0.2))
    index = build(items, kind)
    check(index, items[:5], items, k=7)
    assert index.nearest(items[:1], 7)[0].positions.tolist() == (axis == axis[0]).all(-1).nonzero()[:7, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_queries_and_of_items_change_nothing(kind, monkeypatch):
    items, queries = cones(300, dim=12, widest=1.0), cones(20, dim=12, seed=1)
    index = CUEIndex(12)
    for start in range(0, 300, 70):
        part = items[start : start + 70]
        index.add(part, [f"n{i}" for i in range(start, start + len(part.radius))])
        index.nearest(queries, 3)
    index = index if kind == "exact" else index.approximate()
    one = check(index, queries, items, k=5)
    monkeypatch.setattr("modeling_cue.index._QUERIES", 3)
    monkeypatch.setattr("modeling_cue.index_search._PAIRS", 128)
    monkeypatch.setattr("modeling_cue.index_vectors._PRODUCTS", 100)
    for relation, hits in check(index, queries, items, k=5).items():
        assert [h.ids for h in hits] == [h.ids for h in one[relation]]


def test_cones_of_other_precision_and_with_gradients_are_taken_as_float32():
    items = cones(20, dim=6, dtype=torch.float64)
    whole = torch.tensor(math.pi, dtype=torch.bfloat16)
    direction = torch.eye(6, dtype=torch.bfloat16)[:1].requires_grad_()
    index = build(items)
    assert len(index.inside(Cone(direction, whole[None]))[0]) == 20
    check(index, items.float(), items.float(), k=4)


@needs_faiss
def test_approximate_finds_most_and_takes_more_cones():
    items = cones(4000, dim=16, widest=1.0)
    exact, queries = build(items), cones(100, dim=16, seed=1)
    index, true = exact.approximate(), exact.nearest(queries, 10)

    def recall(**effort):
        found = index.nearest(queries, 10, **effort)
        return sum(len(set(a.ids) & set(b.ids)) for a, b in zip(true, found, strict=True)) / 1000

    assert recall(effort=1) < recall() > 0.95
    # A walk does not meet all cones: what it lacks is found by comparing with all.
    assert [len(h) for h in index.nearest(queries[:2], 4000)] == [4000, 4000]
    more = cones(5, dim=16, seed=9)
    index.add(more, [9000, 9001, 9002, 9003, 9004])
    assert [h.ids for h in index.nearest(more, 1)] == [[9000], [9001], [9002], [9003], [9004]]
    check(index, queries[:5], Cone.cat([items, more]), k=3)
    with pytest.raises(ValueError, match="approximate already"):
        index.approximate()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_answers_the_same(kind, memory_map, tmp_path):
    items = cones(200, dim=10, widest=1.0)
    items = Cone(items.axis, items.radius, torch.arange(200) % 50 == 7)
    index = build(items, kind, text=[f"number {i}" for i in range(200)], tags=[[i, i + 1] for i in range(200)])
    folder = tmp_path / "deep" / "index"
    index.save(folder)
    index.save(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["index"]
    about = json.loads((folder / "index.json").read_text())
    assert (about["kind"], about["dim"], about["count"], about["format_version"]) == (kind, 10, 200, 1)
    loaded = CUEIndex.load(folder, memory_map=memory_map)
    assert repr(loaded) == f"CUEIndex(200 cones, dim=10, {kind})"
    found = check(loaded, items[:30], items, k=6)
    first = found["nearest"][3]
    assert first.metadata("text", "tags") == {
        "text": [f"number {i}" for i in first.ids], "tags": [[i, i + 1] for i in first.ids]
    }  # fmt: skip
    assert first.metadata()["radius"] == items.radius[first.ids].tolist()
    with pytest.raises(KeyError, match="no column .*'caption'.*it has .*'text'"):
        first.metadata("caption")
    more = {"text": ["new"], "tags": [[0]]}
    if memory_map:
        with pytest.raises(ValueError, match="read-only; load it with memory_map=False"):
            loaded.add(cones(1, dim=10, seed=4), [200], more)
        loaded.save(folder)
        check(CUEIndex.load(folder), items[:3], items, k=6)
    else:
        loaded.add(cones(1, dim=10, seed=4), [200], more)
        assert loaded.nearest(cones(1, dim=10, seed=4), 1)[0].metadata("text") == {"text": ["new"]}


def test_what_fails_on_the_way_leaves_the_old_index(tmp_path, monkeypatch):
    build(cones(5)).save(tmp_path / "index")
    monkeypatch.setattr("modeling_cue.index_files.json.dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(cones(9)).save(tmp_path / "index")
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert len(CUEIndex.load(tmp_path / "index")) == 5


def test_from_a_data_set(tmp_path):
    items = cones(30, dim=5, widest=1.0)
    columns = {
        "id": [f"x{i}" for i in range(30)], "modality": ["text", "image"] * 15,
        "axis": items.axis.tolist(), "radius": items.radius.tolist(), "text": [None, "b", "c"] * 10,
    }  # fmt: skip
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "cones.parquet")
    data = datasets.Dataset.from_parquet(str(tmp_path / "cones.parquet"), cache_dir=str(tmp_path / "cache"))
    for source in (data, data.to_iterable_dataset()):
        index = CUEIndex.from_dataset(source, batch_size=7)
        found = check(index, items, items, k=3)
        assert found["nearest"][8].metadata("id", "modality", "text") == {
            name: [columns[name][i] for i in found["nearest"][8].positions]
            for name in ("id", "modality", "text")
        }  # fmt: skip
    chosen = CUEIndex.from_dataset(data.select([4, 2]).add_column("empty", [True, False]))
    assert chosen.inside(Cone(items.axis[:1], torch.zeros(1)))[0].ids == ["x4"]


def test_a_table_of_others_keeps_its_ids():
    items = cones(2, dim=4)
    columns = {"id": ["a", "b"], "axis": items.axis.tolist(), "radius": items.radius.tolist()}
    columns |= {"modality": ["image"] * 2, "caption": ["a dog", "a cat"], "text": [None, None]}
    index = CUEIndex.from_dataset(datasets.Dataset.from_dict(columns))
    assert [hit.ids[0] for hit in index.nearest(items, 1)] == ["a", "b"]
    theirs = columns | {"caption": [0, 1], "sample": ["x", "y"]}
    with pytest.raises(ValueError, match="the column 'sample' .* rename yours"):
        CUEIndex.from_dataset(datasets.Dataset.from_dict(theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cones_in_half_precision(dtype):
    items = cones(20, dim=64, widest=1.0)
    index = CUEIndex(64)
    index.add(items.to(dtype), range(20))
    assert [hit.ids[0] for hit in index.nearest(items.to(dtype), 1)] == list(range(20))
    with pytest.raises(ValueError, match="norm that is not 1"):
        index.add(change(items, axis=1.2).to(dtype), range(20, 40))


def test_metadata_in_every_form():
    items = cones(2, dim=4)
    index = CUEIndex(4)
    index.add(items, [0, 1], {"name": ["a", "b"], "size": [1, 2]})
    index.add(items, [2, 3], {"size": [3, 4], "name": ["c", "d"]})
    index.add(items, [4, 5], [{"name": "e", "size": 5}, {"name": "f", "size": 6}])
    index.add(items, [6, 7], pd.DataFrame({"name": ["g", "h"], "size": [7, 8]}, index=[3, 4]))
    found = index.nearest(items[:1], 8)[0]
    assert {i: name for i, name in zip(found.ids, found.metadata("name")["name"], strict=True)} == dict(
        enumerate("abcdefgh")
    )
    index.add(items, [8, 9], {"name": [None, None], "size": [8, 9]})  # of no type yet
    assert index.nearest(items[:1], 10)[0].metadata("name")["name"].count(None) == 2
    with pytest.raises(ValueError, match="metadata must be a dict of columns, .*paths as text"):
        index.add(items, [10, 11], {"name": [Path("a"), Path("b")], "size": [0, 0]})


def test_a_compound_of_parts_is_a_query_like_any_other(model, processor):
    with torch.no_grad():
        text = model.get_text_cones(**processor(text=["a red circle", "a blue square", "a horn"]))
        index = build(text)
        compound = model.compose(Cone.stack([text[:2], text[1:]], dim=1))
        check(index, compound, text, k=3)
        check(index, Cone(compound.axis, compound.radius), text, k=3)


def test_the_how_to_runs(model, processor, tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[1] / "docs" / "search.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    soundfile.write(tmp_path / "horn.wav", np.sin(np.arange(8000) / 5).astype(np.float32), 16000)
    monkeypatch.chdir(tmp_path)
    found = {"model": model, "processor": processor, "picture": Image.new("RGB", (40, 40), "red")}
    exec(compile(code, "docs/search.md", "exec"), found)
    assert len(found["hits"].metadata("text")["text"]) == 3
    assert found["index"].nearest(found["cones"], 1)[2].ids == ["t2"]


# ---------------------------------------------------------------- bad input


def change(cone, axis=1.0, radius=None):
    return Cone(cone.axis * axis, cone.radius if radius is None else torch.full_like(cone.radius, radius))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.nearest(cones(1, dim=5), 1), "holds cones of 4 dimensions, these have 5"),
        (lambda i: i.add(cones(1, dim=5), [9]), "holds cones of 4 dimensions, these have 5"),
        (lambda i: i.inside(cones(dim=4)), r"shape \(\); one cone: cone\[None\]"),
        (lambda i: i.inside(change(cones(2, dim=4), axis=1.01)), "Cone.axis: 2 of 2 .* normalise"),
        (lambda i: i.add(change(cones(1, dim=4), axis=1.01), [9]), "Cone.axis: 1 of 1 .* normalise"),
        (lambda i: i.add(change(cones(1, dim=4), radius=3.2), [9]), r"Cone.radius: .* not in \[0, pi\]"),
        (lambda i: i.containing(change(cones(1, dim=4), radius=-0.1)), r"Cone.radius: .* not in \[0, pi\]"),
        (lambda i: i.nearest(change(cones(1, dim=4), radius=math.nan), 1), r"Cone.radius: .* not in \[0, pi\]"),
        (lambda i: i.nearest(cones(1, dim=4), 0), "k = 0: give a whole number of at least 1"),
        (lambda i: i.inside(cones(1, dim=4), 0), "k = 0"),
        (lambda i: i.containing(cones(1, dim=4), -1), "k = -1"),
        (lambda i: i.nearest(cones(1, dim=4), 1.5), "k = 1.5"),
        (lambda i: i.nearest(cones(1, dim=4), 1, effort=64), "effort = 64 .* is for an approximate index"),
        (lambda i: i.add(cones(2, dim=4), [7, 7]), "1 ids stand more than once, the first 7"),
        (lambda i: i.add(cones(2, dim=4), [7, 2]), "1 ids are in the index already, the first 2"),
        (lambda i: i.add(cones(2, dim=4), [7]), "'id' has 1 values for 2 cones"),
        (lambda i: i.add(cones(2, dim=4), [7, None]), "1 of 2 ids are missing"),
        (lambda i: i.add(cones(1, dim=4), ["7"]), "the index has the columns id .int64.*come with id .large_string"),
        (lambda i: i.add(cones(1, dim=4), [7], {"text": ["a"]}), "come with .*text"),
        (lambda i: i.add(cones(1, dim=4), [7], {"radius": [0.1]}), "metadata cannot be called .'radius'."),
        (lambda i: i.add(cones(1, dim=4), [7], {"text": ["a", "b"]}), "'text' has 2 values for 1 cones"),
        (lambda i: CUEIndex(1), "at least 2, got 1"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(call, message):
    index = build(cones(3, dim=4))
    with pytest.raises(ValueError, match=message):
        call(index)
    check(index, cones(2, dim=4, seed=1), cones(3, dim=4), k=3)


@pytest.mark.parametrize("ids", [[1.5], [True], ["a", 1], [b"a"]])
def test_ids_are_strings_or_integers(ids):
    with pytest.raises(TypeError, match="ids must be all strings or all integers"):
        CUEIndex(4).add(cones(len(ids), dim=4), ids)


def test_queries_are_cones():
    with pytest.raises(TypeError, match="expected a Cone, got Tensor"):
        build(cones(3)).nearest(cones(3).axis, 1)


def test_an_empty_index_says_so(tmp_path):
    index, query = CUEIndex(16), cones(1)
    for call in (
        lambda: index.nearest(query, 1), lambda: index.inside(query), lambda: index.containing(query),
        lambda: index.approximate(), lambda: index.save(tmp_path / "index"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the index is empty; add cones first"):
            call()


def test_folders_that_are_no_index_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no index: it has no index.json"):
        CUEIndex.load(tmp_path)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    for place in (tmp_path / "letters", tmp_path / "letters" / "dear.txt"):
        with pytest.raises(ValueError, match="holds 'dear.txt', which is of no index; choose another folder"):
            build(cones(3)).save(place)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "keep me"

    build(cones(3)).save(tmp_path / "index")
    for text in ("{}", "[1]", '{"format_ver'):
        (tmp_path / "letters" / "index.json").write_text(text)
        with pytest.raises(ValueError, match="is no index: its index.json is not one"):
            CUEIndex.load(tmp_path / "letters")
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    for change, message in (
        ({"format_version": "2"}, "is no index: its index.json is not one"),
        ({"kind": "x"}, "damaged .KeyError: 'x'.; build it again"),
        ({"format_version": 2}, "format 2, .*this version reads formats up to 1: update the package"),
        ({"count": 4}, "damaged: index.json speaks of 4 cones of 16 dimensions, there are 3 of 16"),
        ({"dim": 8}, "damaged: index.json speaks of 3 cones of 8 dimensions"),
    ):
        (tmp_path / "index" / "index.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=message):
            CUEIndex.load(tmp_path / "index")


@pytest.mark.parametrize("name", ["items.arrow", "vectors.npy", "vectors.faiss"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_damaged_files_are_refused(name, memory_map, tmp_path):
    index = build(cones(40))
    (index.approximate() if name == "vectors.faiss" else index).save(tmp_path / "index")
    file = tmp_path / "index" / name
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"", None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged .*build it again"):
            CUEIndex.load(tmp_path / "index", memory_map)


def test_a_link_leads_to_the_index_that_is_replaced(tmp_path):
    build(cones(3)).save(tmp_path / "v1")
    (tmp_path / "latest").symlink_to("v1")
    build(cones(5)).save(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert len(CUEIndex.load(tmp_path / "v1")) == 5


def test_data_sets_of_several_splits_say_which():
    one = datasets.Dataset(pa.table({"id": [1], "axis": [[1.0, 0.0]], "radius": [0.1]}))
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\]: give one of them"):
        CUEIndex.from_dataset(datasets.DatasetDict({"train": one, "test": one}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"axis": [[1.0, 0.0]], "radius": [0.1]}, "no column .'id'., only .'axis', 'radius'."),
        ({"id": [1, 2], "axis": [[1.0, 0.0], [1.0]], "radius": [0.1, 0.1]}, r"one length .* got lengths \[2, 1\]"),
        ({"id": [1, 2], "axis": [[1.0, 0.0], None], "radius": [0.1, 0.1]}, "without gaps"),
        ({"id": [1], "axis": [[1.0, None]], "radius": [0.1]}, "without gaps"),
        ({"id": [1], "axis": [[1.0, 0.0]], "radius": [None]}, "'radius' lacks 1 values"),
        ({"id": [1], "axis": [[1.0, 0.1]], "radius": [0.1]}, "Cone.axis: 1 of 1"),
        ({"id": [], "axis": [], "radius": []}, "no rows"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(columns, message):
    data = datasets.Dataset(pa.table(columns))
    with pytest.raises(ValueError, match=message):
        CUEIndex.from_dataset(data)


def test_without_faiss_exact_search_works_and_approximate_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    items = cones(50)
    check(build(items), items, items, k=5)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        build(items).approximate()


def test_nothing_is_added_by_an_empty_batch_and_dicts_may_differ():
    index = CUEIndex(4)
    none = Cone(torch.zeros(0, 4), torch.zeros(0))
    index.add(none, [])
    index.add(Cone(torch.eye(4)[:2], torch.ones(2)), ["a", "b"], metadata=[{"x": 1}, {"y": 2}])
    index.add(none, [])
    assert len(index) == 2
    (hits,) = index.nearest(Cone(torch.eye(4)[1:2], torch.ones(1)), k=2)
    assert hits.ids[0] == "b"
    assert hits.metadata("x", "y") == {"x": [None, 1], "y": [2, None]}


def test_hits_print_what_was_found():
    index = CUEIndex(8)
    index.add(Cone(torch.eye(8), torch.full((8,), 0.2)), [f"item {n}" for n in range(8)])
    (hits,) = index.nearest(Cone(torch.eye(8)[:1], torch.tensor([0.5])), k=6)
    assert repr(hits).startswith("Hits(6: 'item 0' 1.000 (margin +0.30), 'item 1' 0.000")
    assert repr(hits).endswith(", ...)")


def test_hits_are_a_sequence_and_as_few_as_asked_for():
    index = CUEIndex(dim=4)
    given = cones(12, dim=4)
    wide = Cone(given.axis[:2], torch.full((2,), 3.0))
    index.add(Cone(given.axis, given.radius / 100), ids=[f"c{i}" for i in range(12)])
    for ask in (index.nearest, index.inside):
        full = ask(wide, 100) if ask == index.nearest else ask(wide)
        for query, hits in enumerate(full):
            assert len(hits) > 3
            assert [hit.id for hit in hits] == hits.ids
            assert [(hit.score, hit.margin) for hit in hits] == list(zip(hits.scores, hits.margins, strict=True))
            assert (hits[0], hits[-1]) == (next(iter(hits)), list(hits)[-1])
            assert list(ask(wide, 3)[query]) == list(hits)[:3]
    tiny = Cone(given.axis[:1], torch.zeros(1))
    index.add(wide, ids=["w0", "w1"])
    assert list(index.containing(tiny, k=1)[0]) == list(index.containing(tiny)[0])[:1]
    with pytest.raises(IndexError):
        hits[len(hits)]
