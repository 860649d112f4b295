"""Damaged files through every reader: python tests/fuzz.py KIND COUNT SEED [FOLDER ...]; prints counts as JSON.

Files that are right are damaged at random: bits flipped, bytes overwritten, cut out, put in twice, or the end cut off.
A reader may still give a value, which must be as the reader promises; or raise an error of its own kind that says what
is wrong. Anything else ends the process with another code: an error of another kind, a value that breaks a promise, a
crash of the interpreter. Folders add files of that kind, such as photographs.
"""

import io
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image

from modeling_cue.media_audio import load_audio
from modeling_cue.media_files import MODALITY_OF_SUFFIX, MediaError
from modeling_cue.media_image import load_image
from modeling_cue.media_video import load_video
from modeling_cue.training.data import load_rows
from modeling_cue.training.parsing import parse_arguments
from modeling_cue.training.rows import DataError

SLOW = 20  # seconds that one file may take, on a machine that does other things too
GREEDY = 2**30  # bytes by which the process may grow over its first reading of a right file


def images(rng: np.random.Generator) -> list[bytes]:
    pixels = Image.fromarray(np.kron(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), np.ones((9, 9, 1), np.uint8)))
    files = []
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        pixels.save(buffer, form)
        files.append(buffer.getvalue())
    return files


def sounds(rng: np.random.Generator) -> list[bytes]:
    files = []
    for form, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("MP3", None)):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * rng.normal(size=8000).astype(np.float32), 16000, format=form, subtype=subtype)
        files.append(buffer.getvalue())
    return files


def films(rng: np.random.Generator) -> list[bytes]:
    files = []
    for form, codec in (("mp4", "mpeg4"), ("avi", "mpeg4"), ("matroska", "mjpeg")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=form) as container:
            stream = container.add_stream(codec, rate=8)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for _ in range(8):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        files.append(buffer.getvalue())
    return files


def tables(rng: np.random.Generator) -> list[bytes]:
    from samples import make_rows

    buffer = io.BytesIO()
    make_rows(("image",), count=4).to_parquet(buffer)
    return [buffer.getvalue()]


def settings(rng: np.random.Generator) -> list[bytes]:
    return [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))]


def read_image(data: bytes, folder: Path) -> None:
    image = load_image(data)
    assert image.mode == "RGB" and min(image.size) > 0
    image.load()


def read_sound(data: bytes, folder: Path) -> None:
    wave = load_audio(data, 16000)
    assert wave.ndim == 1 and len(wave) and np.isfinite(wave).all()


def read_film(data: bytes, folder: Path) -> None:
    frames = load_video(data, 4)
    assert len(frames) == 4
    assert all(min(torch.as_tensor(np.asarray(frame)).shape) > 0 for frame in frames)


def read_table(data: bytes, folder: Path) -> None:
    (folder / "train.parquet").write_bytes(data)
    rows = load_rows(str(folder / "train.parquet"), None, cache_dir=str(folder / "cache"))
    for row in rows:
        assert row["id"] and row["caption"] and all(isinstance(text, str) for text in row["caption"])
        load_image(row["image"])


def read_settings(data: bytes, folder: Path) -> None:
    (folder / "settings.yaml").write_bytes(data)
    try:
        parse_arguments([str(folder / "settings.yaml"), "--bf16", "false", "--output_dir", "unused"])
    except SystemExit as stop:  # the parser of arguments has said which value is wrong
        assert stop.code == 2
        raise ValueError("refused by argparse") from stop


KINDS: dict[str, tuple[Callable[..., list[bytes]], Callable[[bytes, Path], None]]] = {
    "image": (images, read_image),
    "audio": (sounds, read_sound),
    "video": (films, read_film),
    "parquet": (tables, read_table),
    "yaml": (settings, read_settings),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four damages, one on another."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = max(len(found), 1)
        # Heads and tails decide how a file is read: half of all damages are there.
        head, tail = rng.integers(min(size, 64), size=2)
        near = int(rng.choice([rng.integers(size), rng.integers(size), head, size - 1 - tail]))
        length = int(rng.integers(1, 1 + min(64, size)))
        match rng.integers(5):
            case 0:
                found[near : near + 1] = bytes([found[near] ^ 1 << int(rng.integers(8))]) if found else b""
            case 1:
                found[near : near + length] = rng.bytes(length)
            case 2:
                del found[near : near + length]
            case 3:
                found[near:near] = found[near : near + length]
            case _:
                del found[near:]
    return bytes(found)


def fuzz(kind: str, count: int, seed: int, folders: list[str]) -> dict[str, Any]:
    make, read = KINDS[kind]
    rng = np.random.default_rng(seed)
    files = make(rng)
    for folder in folders:
        paths = [path for path in sorted(Path(folder).rglob("*")) if MODALITY_OF_SUFFIX.get(path.suffix) == kind]
        files += [path.read_bytes() for path in paths[:20]]
    found: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        for data in files:
            read(data, Path(name))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            data = damaged(files[number % len(files)], rng)
            (Path(name) / "last").write_bytes(data)
            start = time.monotonic()
            try:
                read(data, Path(name))
                found["read"] += 1
            except ValueError as error:
                # Media, rows and arguments each have one kind of error, and each is a ValueError with a message.
                own = {"parquet": DataError | MediaError, "yaml": ValueError}.get(kind, MediaError)
                assert str(error) and isinstance(error, own) and not isinstance(error, UnicodeError), repr(error)
                found[type(error).__name__] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz_{kind}_{seed}_{number}"
                kept.write_bytes(data)
                print(f"{kind} {number} of seed {seed} is kept as {kept}", file=sys.stderr)
                raise
            slowest = max(slowest, time.monotonic() - start)
            assert slowest < SLOW, f"{kind} {number} of seed {seed} took {slowest:.0f} s"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < GREEDY, f"{kind}: {grown / 2**20:.0f} MiB more than a right file takes"
    return {"files": count, **found, "slowest_s": round(slowest, 2), "grown_MiB": grown // 2**20}


if __name__ == "__main__":
    kind, count, seed, *folders = sys.argv[1:]
    print(json.dumps(fuzz(kind, int(count), int(seed), folders)))
