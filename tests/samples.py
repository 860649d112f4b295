"""Small rows for training tests: six samples of four modalities, drawn here."""

import io
from itertools import cycle, islice

import numpy as np
import soundfile
from datasets import Audio, Dataset, Features, Image, List, Value, Video
from PIL import Image as Pillow

ANIMALS = ("dog", "cat", "man", "woman", "dog", "cat")
COLOURS = ("red", "blue", "green", "red", "blue", "green")
VERBS = ("runs", "jumps", "runs", "jumps", "jumps", "runs")


def png(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(rng: np.random.Generator, seconds: float = 0.3) -> bytes:
    buffer = io.BytesIO()
    samples = rng.normal(size=int(16000 * seconds)).astype(np.float32) * 0.1
    soundfile.write(buffer, samples, 16000, format="WAV")
    return buffer.getvalue()


def gif(rng: np.random.Generator, frames: int = 4) -> bytes:
    """A clip that Pillow writes and PyAV reads."""
    pictures = [Pillow.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return buffer.getvalue()


def make_rows(modalities=("image",), captions: int = 2, count: int = 6) -> Dataset:
    rng = np.random.default_rng(0)
    make = {"image": png, "audio": wav, "video": gif}
    rows: dict[str, list] = {"id": [f"sample {i}" for i in range(count)]}
    rows["caption"] = [
        [f"a {colour} {animal} {verb} on a big circle", f"the {animal} in a small square"][:captions]
        for colour, animal, verb in islice(cycle(zip(COLOURS, ANIMALS, VERBS, strict=True)), count)
    ]  # fmt: skip
    for modality in modalities:
        rows[modality] = [{"bytes": make[modality](rng), "path": None} for _ in range(count)]
    file = {"bytes": Value("binary"), "path": Value("string")}
    plain = {"id": Value("string"), "caption": List(Value("string"))}
    dataset = Dataset.from_dict(rows, features=Features(plain | {m: file for m in modalities}))
    undecoded = {"image": Image(decode=False), "audio": Audio(decode=False), "video": Video(decode=False)}
    return dataset.cast(Features(plain | {m: undecoded[m] for m in modalities}))
