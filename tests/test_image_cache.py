"""The cache of decoded images: the same pixels, kept by what they depend on, never half of them."""

import pickle
import resource
import shutil

import numpy as np
import pytest
import torch
import transformers as hf
from samples import make_rows

from modeling_cue import CUEProcessor
from modeling_cue.training.collator import CUECollator
from modeling_cue.training.image_cache import build_image_cache
from modeling_cue.training.pairs import CaptionPairs, caption_pairs
from modeling_cue.training.rows import BadRowError, BadRows


def image_processor(size=32):
    return hf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def caches(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_batch_is_the_same_with_and_without(processor, tmp_path):
    rows = make_rows()
    cache = build_image_cache(processor, rows, tmp_path)
    plain, cached = caption_pairs(rows, "all"), caption_pairs(rows, "all", images=cache)
    collator = CUECollator(processor, ("text", "image"), None)
    one, two = (collator([pairs[i] for i in (3, 0, 5)])["model"]["pixel_values"] for pairs in (plain, cached))
    assert torch.equal(one, two)
    assert "image" not in cached.rows.column_names  # files are not read
    mirrored = CUECollator(processor, ("image",), None, mirror_images=True)
    torch.manual_seed(0)
    turned = mirrored([cached[i] for i in range(6)])["model"]["pixel_values"]
    straight = processor(images=[cache[i] for i in range(6)])["pixel_values"]
    flips = [torch.equal(a, b.flip(-1)) for a, b in zip(turned, straight, strict=True)]
    assert 0 < sum(flips) < 6
    there = pickle.loads(pickle.dumps(cache))  # in a worker process
    assert torch.equal(there[4].pixels, processor.pipeline.prepare(rows[4]["image"]).pixels)


def test_a_change_of_data_or_processor_makes_another(tmp_path):
    rows, processor = make_rows(), CUEProcessor(image_processor=image_processor())
    build_image_cache(processor, rows, tmp_path)
    first = caches(tmp_path)
    pixels = tmp_path / first[0] / "pixels.npy"
    assert pixels.stat().st_size == len(rows) * 32 * 32 * 3 + 128
    before = pixels.stat().st_mtime_ns
    build_image_cache(processor, rows, tmp_path)
    assert caches(tmp_path) == first
    assert pixels.stat().st_mtime_ns == before  # read, not written
    build_image_cache(processor, rows.select([1, 0, 2, 3, 4, 5]), tmp_path)
    build_image_cache(CUEProcessor(image_processor=image_processor(), jpeg_draft=1), rows, tmp_path)
    build_image_cache(CUEProcessor(image_processor=image_processor(24)), rows, tmp_path)
    assert len(caches(tmp_path)) == 4


def test_one_that_was_cut_off_is_written_anew(tmp_path):
    rows, processor = make_rows(), CUEProcessor(image_processor=image_processor())
    build_image_cache(processor, rows, tmp_path)
    (name,) = caches(tmp_path)
    (tmp_path / name).rename(tmp_path / f"{name}.part")
    (tmp_path / f"{name}.part" / "pixels.npy").write_bytes(b"half")
    cache = build_image_cache(processor, rows, tmp_path)
    assert caches(tmp_path) == [name]
    assert len(cache) == 6
    assert torch.equal(cache[2].pixels, processor.pipeline.prepare(rows[2]["image"]).pixels)


def test_a_disk_without_room(tmp_path):
    rows, processor = make_rows(), CUEProcessor(image_processor=image_processor())
    edge = int((shutil.disk_usage(tmp_path).free / 6 / 3) ** 0.5) + 1000
    with pytest.raises(ValueError, match=r"no room for .* GiB of images .* make room, name a folder on another disk"):
        build_image_cache(CUEProcessor(image_processor=image_processor(edge)), rows, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # the disk fills while it is written
    try:
        with pytest.raises(ValueError, match="has no room"):
            build_image_cache(processor, rows, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caches(tmp_path) == []


def test_broken_images_are_met_as_without_it(tmp_path):
    processor = CUEProcessor(image_processor=image_processor())
    rows = make_rows().map(
        lambda row, i: {"image": {"bytes": b"no image", "path": None}} if i == 2 else {}, with_indices=True
    )
    with pytest.raises(BadRowError, match="row 'sample 2': the image is no image that can be read"):
        build_image_cache(processor, rows, tmp_path, BadRows("raise"))
    assert caches(tmp_path) == []
    bad = BadRows("skip")
    pairs = CaptionPairs(rows, True, build_image_cache(processor, rows, tmp_path, bad))
    assert bad.count == 0
    batch = CUECollator(processor, ("image",), None, bad_rows=bad)([pairs[i] for i in range(4)])
    assert len(batch["model"]["pixel_values"]) == 3
    assert bad.count == 1


def test_processes_fill_it_in_order(tmp_path):
    rows, processor = make_rows(count=130), CUEProcessor(image_processor=image_processor())
    cache = build_image_cache(processor, rows, tmp_path, num_workers=2)
    for i in (0, 63, 64, 129):
        assert np.array_equal(cache[i].pixels, processor.pipeline.prepare(rows[i]["image"]).pixels)


def test_what_cannot_be_cached_says_so(tmp_path):
    processor = CUEProcessor(image_processor=image_processor(), fast_images=False)
    with pytest.raises(ValueError, match="prepares them cannot be cached, since fast_images is off"):
        build_image_cache(processor, make_rows(), tmp_path)
