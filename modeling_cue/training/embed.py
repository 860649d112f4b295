"""The steps of `run_embed.py`, one function each."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from ..encoders import MODALITIES
from ..modeling_cue import CUEModel
from ..processing_cue import CUEProcessor
from .data import load_rows
from .embed_arguments import EmbedArguments
from .embed_readme import readme
from .embed_store import ConeStore, Totals, cone_features
from .embedder import Embedder
from .fingerprint import model_fingerprint, rows_fingerprint
from .loading import load_checkpoint
from .loose import is_loose, loose_rows
from .rows import BadRows, DataError
from .scenes import SCENES, make_scenes
from .sources import data_source, source_fingerprint
from .streams import RowStream

logger = logging.getLogger(__name__)
# The column of each modality.
ROLES = {"text": "caption", "image": "image", "audio": "audio", "video": "video"}


@dataclass
class Source:
    """Rows to embed: a `Dataset`, or a `RowStream` whose rows are counted only by reading them.

    `fingerprint` is of the source, `content` of the rows taken of it; "" where they cannot be told.
    """

    rows: Dataset | RowStream
    modalities: tuple[str, ...]
    fingerprint: str
    content: str
    bad_rows: BadRows


def start(arguments: EmbedArguments) -> PartialState:
    """This process among those of `accelerate launch`, or alone."""
    # Shards differ in the time they take, and a process that is ready waits for the others for as long as it takes.
    return PartialState(cpu=arguments.use_cpu, timeout=timedelta(days=30))


def load_model(arguments: EmbedArguments, state: PartialState) -> tuple[CUEModel, CUEProcessor]:
    """Model and processor of a checkpoint, on the device of this process; raises as `load_checkpoint`."""
    model, processor = load_checkpoint(arguments.model_name_or_path)
    model.eval().to(state.device)  # type: ignore[arg-type]
    return model, processor


def load_source(arguments: EmbedArguments, model: CUEModel, state: PartialState) -> Source:
    """The rows to embed, with the modalities that model, data and arguments have in common.

    Raises:
        ValueError: a modality or a column is asked for that the model does not have. DataError: as `load_rows`.
    """
    wanted = _wanted(arguments, model)
    bad_rows = BadRows(arguments.on_bad_row)
    name = arguments.dataset_name
    rows: Any
    # The first process fills the cache of `datasets`, the others find it filled.
    with state.main_process_first():
        if name == "scenes":
            rows = _scenes(arguments, [m for m in wanted if m != "text"])
        elif is_loose(name):
            if named := _named(arguments):
                raise DataError(f"{name!r} holds loose files, which have no columns: leave out {', '.join(named)}")
            rows = loose_rows(name, arguments.split, wanted, arguments.max_samples, bad_rows)
        else:
            rows = load_rows(
                data_source(arguments),
                arguments.split,
                paired=False,
                streaming=arguments.streaming,
                max_samples=arguments.max_samples,
                modalities=wanted,
                **_named(arguments),
                check_counts=arguments.check_counts,
                bad_rows=bad_rows,
            )
    present = _present(rows, wanted)
    if missing := [m for m in arguments.modalities if m not in present]:
        raise DataError(f"{name}: there is no {' and no '.join(missing)} in it to embed; it has {', '.join(present)}")
    if state.is_main_process:
        print(f"embedding {', '.join(present)} of {name} by {arguments.model_name_or_path}", flush=True)
    fingerprint = name if name == "scenes" else source_fingerprint(data_source(arguments))
    return Source(rows, present, fingerprint, _content(rows), bad_rows)


def open_store(arguments: EmbedArguments, model: CUEModel, processor: CUEProcessor, source: Source) -> ConeStore:
    """The output folder, new or with what a run of the same model, data and settings left in it.

    Raises:
        DataError: it holds something else.
    """
    settings = {
        "names": {"model": arguments.model_name_or_path, "data": arguments.dataset_name},
        "model": {"fingerprint": model_fingerprint(model, processor)},
        "data": {
            "fingerprint": source.fingerprint,
            "content": source.content,
            "split": arguments.split,
            "columns": _named(arguments),
            "max_samples": arguments.max_samples,
            "streaming": isinstance(source.rows, RowStream),
        },
        "modalities": list(source.modalities),
        "dimension": model.config.projection_dim,
        "shard_size": arguments.shard_size,
        "axis_dtype": arguments.axis_dtype,
        "towers": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
    }
    features = cone_features(model.config.projection_dim, arguments.axis_dtype)
    store = ConeStore(arguments.output_dir, settings, features, arguments.split or "train")
    with PartialState().main_process_first():
        store.open()
    return store


def embed(
    arguments: EmbedArguments, model: CUEModel, processor: CUEProcessor, source: Source, store: ConeStore
) -> Embedder:
    """Embeds this process's share of the shards that are not done yet.

    Processes share files of a stream or shards of a data set; of a stream with fewer files than processes, each reads
    all and embeds its share of the shards.
    """
    state = PartialState()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    embedder = Embedder(
        model, processor, source.modalities, arguments.batch_size, num_workers=arguments.num_workers, autocast=dtype
    )
    bad_rows = BadRows(arguments.on_bad_row)
    units = _units(source, arguments.shard_size)
    by_unit = len(units) >= state.num_processes or isinstance(source.rows, Dataset)
    own = [(n, unit) for n, unit in enumerate(units) if not by_unit or n % state.num_processes == state.process_index]
    total = sum(map(len, (unit for _, unit in own))) if isinstance(source.rows, Dataset) else None
    with tqdm(total=total, unit=" rows", desc="embedding", disable=not state.is_local_main_process) as bar:
        for number, unit in [] if store.complete else own:
            if store.closed(number):
                bar.update(len(unit) if isinstance(unit, Dataset) else 0)
                continue
            left_out, shard = source.bad_rows.count, -1
            for shard, rows in enumerate(_shards(unit, arguments.shard_size)):
                mine = by_unit or (number + shard) % state.num_processes == state.process_index
                if mine and not store.has(number, shard):
                    _embed_shard(embedder, rows, bad_rows, store, (number, shard), bar)
                elif mine:
                    bar.update(len(rows))
            if by_unit or state.is_main_process:
                store.close(number, shard + 1, source.bad_rows.count - left_out)
    return embedder


def finish(embedder: Embedder, source: Source, store: ConeStore) -> Totals | None:
    """Makes a data set of the shards when all processes are done; prints what was embedded and how fast.

    Returns what the data set holds; None in other processes than the first.
    """
    state = PartialState()
    state.wait_for_everyone()
    speeds = gather_object([{m: (n, embedder.seconds[m]) for m, n in embedder.counts.items()}])
    if not state.is_main_process:
        return None
    was_finished, totals = store.finished, store.publish(len(_units(source, store.settings["shard_size"])))
    if not was_finished:
        # Rows of a data set that are broken in themselves are found when it is loaded, before there are shards.
        at_load = source.bad_rows.count if isinstance(source.rows, Dataset) else 0
        totals = Totals(totals.cones, totals.left_out + at_load)
        store.tidy(readme(store, totals))
    for modality in totals.cones:
        done = [speed[modality] for speed in speeds if modality in speed]
        rate = sum(count / seconds for count, seconds in done)
        here = f"  {sum(count for count, _ in done):,} in this run at {rate:,.1f}/s" if done else ""
        print(f"{modality:8}{totals.cones[modality]:12,} cones{here}")
    if totals.left_out and not was_finished:  # then its README has the number, with those met while reading
        print(f"broken rows left out: {totals.left_out}")
    print(f"result:  {store.folder}" + (" (was finished before)" if was_finished else ""))
    return totals


def _named(arguments: EmbedArguments) -> dict[str, Any]:
    """The columns that arguments name, by argument."""
    columns = {
        name: getattr(arguments, name) for name in (f"{role}_column" for role in (*ROLES.values(), "id", "split"))
    }
    return {name: column for name, column in columns.items() if column}


def _wanted(arguments: EmbedArguments, model: CUEModel) -> tuple[str, ...]:
    has = model.config.modalities
    for modality in arguments.modalities:
        if modality not in MODALITIES:
            raise ValueError(f"modalities: {modality!r} is not valid; it must be among {', '.join(MODALITIES)}")
    named = [modality for modality, role in ROLES.items() if f"{role}_column" in _named(arguments)]
    if lacking := [m for m in (*arguments.modalities, *named) if m not in has]:
        raise ValueError(
            f"{arguments.model_name_or_path} has no {lacking[0]} modality: it embeds {', '.join(has)}; leave "
            f"{lacking[0]} out of modalities and columns, or take another model"
        )
    return tuple(m for m in has if m in (arguments.modalities or has))


def _scenes(arguments: EmbedArguments, media: list[str]) -> Dataset:
    arguments.split = arguments.split or "test"
    size = SCENES.get(arguments.split, 1)
    rows = make_scenes(arguments.split, min(arguments.max_samples or size, size), modalities=media)
    rows = rows.select_columns(["id", "caption", *media])
    return rows.add_column("first", [0] * len(rows)).add_column("media", [media] * len(rows))


def _present(rows: Dataset | RowStream, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The modalities that the rows have."""
    if isinstance(rows, RowStream):
        there = set(rows.column_names) | ({"text"} if rows.columns.caption else set())
    else:
        there = {m for media in _values(rows, "media") for m in media}
        there |= {"text"} if any(_values(rows, "caption")) else set()
    return tuple(m for m in wanted if m in there)


def _values(rows: Dataset, name: str) -> Iterator[Any]:
    for batch in rows.select_columns([name]).iter(10_000):
        yield from batch[name]


def _content(rows: Dataset | RowStream) -> str:
    """A hash of ids and captions, of rows that can be looked at."""
    if isinstance(rows, RowStream):
        return ""
    return rows_fingerprint(rows.select_columns(["id", "caption", "media"]))


def _units(source: Source, shard_size: int) -> list[Any]:
    """What processes share: the files of a stream, or pieces of a data set, each of one shard."""
    if isinstance(source.rows, RowStream):
        return list(source.rows.files())
    starts = range(0, len(source.rows), shard_size)
    return [source.rows.select(range(at, min(at + shard_size, len(source.rows)))) for at in starts]


def _shards(unit: Any, size: int) -> Iterator[Any]:
    if isinstance(unit, Dataset):
        yield unit
        return
    rows: list[dict[str, Any]] = []
    for row in unit:
        rows.append(row)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def _embed_shard(
    embedder: Embedder, rows: Any, bad_rows: BadRows, store: ConeStore, place: tuple[int, int], bar: Any
) -> None:
    left_out, begun, share = bad_rows.count, bar.n, 0.0

    def advance(more: float) -> None:
        nonlocal share
        share += more
        bar.update(int(share * len(rows)) - (bar.n - begun))

    cones = embedder.rows(rows, bad_rows, advance)
    bar.update(len(rows) - (bar.n - begun))
    ids = rows.select_columns(["id"])[:]["id"] if isinstance(rows, Dataset) else [row["id"] for row in rows]
    store.write(*place, ids, cones, bad_rows.count - left_out)
