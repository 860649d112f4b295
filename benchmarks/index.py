"""CUEIndex by memory and time: exact, approximate, memory-mapped, and FAISS's own flat and list indexes beside it.

python benchmarks/index.py [--items 1000000] [--dim 64] [--centres 20000] [--queries 256] [--threads 1]

Every row is a process of its own, on cones from one seed: centres drawn evenly from the sphere, round each of them
narrow cones (radius up to 0.1, about 0.8 from the centre) and, one in ten, wide ones (0.4 to 1, about 0.2 from it).
`--centres 0` draws everything evenly, the worst case of any approximate search. Queries are unseen cones of the same
make: narrow ones for `nearest` (10) and `containing`, wide ones for `inside`. Times are processor time in
milliseconds per query, single (the first 20, one by one) and in one batch; with one thread that is time on an idle
machine, whatever else runs. Memory is what stands after loading and searching: allocated, and mapped from files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

K, SINGLE = 10, 20
ROWS = ("exact", "exact, mapped", "approximate", "approximate, mapped", "faiss flat", "faiss lists")


def make_cones(count: int, wide: float, arguments: argparse.Namespace, seed: int):
    """Cones of which a share is wide: `count` of them, the same for the same seed."""
    from modeling_cue import Cone

    random = torch.Generator().manual_seed(seed)
    is_wide = torch.rand(count, generator=random) < wide
    radius = torch.where(is_wide, 0.4, 0.0) + torch.where(is_wide, 0.6, 0.1) * torch.rand(count, generator=random)
    axis = torch.nn.functional.normalize(torch.randn(count, arguments.dim, generator=random), dim=-1)
    if arguments.centres:
        # The same centres for every seed.
        centres = torch.randn(arguments.centres, arguments.dim, generator=torch.Generator().manual_seed(0))
        centres = torch.nn.functional.normalize(centres, dim=-1)
        axis *= torch.where(is_wide, 0.2, 1.0)[:, None]
        axis += centres[torch.randint(arguments.centres, (count,), generator=random)]
    return Cone(torch.nn.functional.normalize(axis, dim=-1), radius)


def memory() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[key].split()[0]) // 1024 for key in ("RssAnon", "RssFile")}


def timed(call, *parts) -> tuple[float, list]:
    """Milliseconds of processor time for each of the parts, and what came back."""
    start = time.process_time()
    found = [call(part) for part in parts]
    return 1000 * (time.process_time() - start) / len(parts), found


def build(folder: Path, arguments: argparse.Namespace) -> None:
    from modeling_cue import CUEIndex

    cones = make_cones(arguments.items, 0.1, arguments, seed=1)
    index = CUEIndex(arguments.dim)
    text = [f"number {i}" for i in range(arguments.items)]
    add, _ = timed(lambda _: index.add(cones, range(arguments.items), {"text": text}), 0)
    save, _ = timed(index.save, folder / "exact")
    graph, (approximate,) = timed(lambda _: index.approximate(), 0)
    approximate.save(folder / "approximate")
    sizes = {path.name: path.stat().st_size / 2**20 for kind in folder.iterdir() for path in kind.iterdir()}
    print(f"add {add / 1000:.1f} s, save {save / 1000:.1f} s, graph {graph / 1000:.1f} s")
    print("on disk, MiB:", ", ".join(f"{name} {size:.1f}" for name, size in sorted(sizes.items()) if size > 1))


def measure(row: str, folder: Path, arguments: argparse.Namespace) -> dict:
    narrow = make_cones(arguments.queries, 0.0, arguments, seed=2)
    wide = make_cones(arguments.queries, 1.0, arguments, seed=3)
    if row.startswith("faiss"):
        return measure_faiss(row, folder, narrow, wide)
    from modeling_cue import CUEIndex

    kind, *mapped = row.split(", ")
    before = memory()
    load, (index,) = timed(lambda path: CUEIndex.load(path, memory_map=bool(mapped)), folder / kind)
    figures: dict = {"load, ms": load}
    calls = {
        "nearest": (narrow, lambda cones: index.nearest(cones, K)),
        "inside": (wide, index.inside),
        "containing": (narrow, index.containing),
    }
    calls["nearest"][1](narrow[:1])
    index.inside(wide[:1])
    for name, (queries, call) in calls.items():
        single, _ = timed(call, *(queries[i : i + 1] for i in range(SINGLE)))
        batch, (hits,) = timed(call, queries)
        figures[name] = [single, batch / arguments.queries, sum(map(len, hits)) / arguments.queries]
        figures[f"{name} ids"] = [hit.positions.tolist() for hit in hits]
    after = memory()
    figures |= {key: after[key] - before[key] for key in ("RssAnon", "RssFile")}
    if row == "approximate":
        for effort in (16, 32, 64, 128, 256, 512):
            took, (hits,) = timed(lambda cones, e=effort: index.nearest(cones, K, effort=e), narrow)
            figures.setdefault("tried", {})[effort] = [
                took / arguments.queries, [hit.positions.tolist() for hit in hits]
            ]  # fmt: skip
    return figures


def measure_faiss(row: str, folder: Path, narrow, wide) -> dict:
    """FAISS alone on the same rows: the candidates only, without the exact filter and the order of ties."""
    import faiss

    from modeling_cue.index_vectors import containment_queries, cosine_queries

    rows = np.load(folder / "exact" / "vectors.npy")
    figures: dict = {}
    if row == "faiss flat":
        took, index = 0.0, faiss.IndexFlatIP(rows.shape[1])
    else:
        lists = round(2 * len(rows) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        # Neighbours by axis share a list, whatever their radii.
        sample = rows[np.random.default_rng(0).permutation(len(rows))[: 64 * lists]]
        sample[:, -2:] = 0
        took, _ = timed(index.train, sample)
        index.nprobe = lists // 16
    took += timed(index.add, rows)[0]
    figures["load, ms"] = took
    every = torch.zeros(len(narrow.radius), dtype=torch.bool)
    calls = {
        "nearest": (cosine_queries(narrow), lambda q: index.search(q, K)),
        "inside": (containment_queries(wide, every), lambda q: index.range_search(q, 0.0)),
    }
    for name, (queries, call) in calls.items():
        single, _ = timed(call, *(queries[i : i + 1] for i in range(SINGLE)))
        batch, (found,) = timed(call, queries)
        size = len(found[1]) if name == "inside" else K * len(queries)
        figures[name] = [single, batch / len(queries), size / len(queries)]
        if name == "nearest":
            figures["nearest ids"] = found[1].tolist()
    return figures


def recall(true: list, found: list) -> float:
    """The share of what is true that was found."""
    hits = sum(len(set(a) & set(b)) for a, b in zip(true, found, strict=True))
    return hits / max(1, sum(map(len, true)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 1_000_000), ("dim", 64), ("centres", 20_000), ("queries", 256), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
        row, folder = arguments.only
        if row == "build":
            return build(Path(folder), arguments)
        return print(json.dumps(measure(row, Path(folder), arguments)))

    def alone(row: str, folder: str) -> str:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", row, folder]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    print(f"{arguments.items} cones, D = {arguments.dim}, {arguments.centres} centres, {arguments.threads} thread(s)")
    with tempfile.TemporaryDirectory() as folder:
        print(alone("build", folder), end="")
        print("ms per query: single / batch / items found; recall of nearest; MiB allocated + mapped")
        true: dict = {}
        for row in ROWS:
            figures = json.loads(alone(row, folder))
            true = true or figures
            line = f"{row:20}"
            for name in ("nearest", "inside", "containing"):
                if name in figures:
                    single, batch, size = figures[name]
                    line += f" {name} {single:.2f} / {batch:.2f} / {size:.1f} "
                    if (
                        name != "nearest"
                        and f"{name} ids" in figures
                        and figures[f"{name} ids"] != true[f"{name} ids"]
                    ):
                        raise SystemExit(f"{row}: {name} differs from the exact answers")
            line += f" recall {recall(true['nearest ids'], figures['nearest ids']):.3f}"
            if "RssAnon" in figures:
                line += f"  {figures['RssAnon']} + {figures['RssFile']} MiB"
            print(line + f"  load {figures['load, ms']:.0f} ms", flush=True)
            for effort, (took, ids) in figures.get("tried", {}).items():
                print(
                    f"    effort {effort:>4}: {took:.2f} ms, recall {recall(true['nearest ids'], ids):.3f}", flush=True
                )


if __name__ == "__main__":
    main()
