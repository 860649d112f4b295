"""Images in, a normalised batch out: CUE's processor beside the image processors of transformers.

python benchmarks/images.py [--sizes 500x375 1024x768] [--images 32] [--rounds 7] [--tower clip]

The JPEGs are drawn here, with the spectrum of photographs. Every round runs every way once, in turns, over all images,
in one thread; times are the computing time of the process, which others on the machine do not stretch. Printed are the
median (smallest, largest) over the rounds of how many times faster a way is than each of the two of transformers, its
milliseconds an image, and its distance from transformers' Pillow processor in levels of 8 bits.
Then what the parts cost, in milliseconds an image.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    BitImageProcessorPil,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from modeling_cue import CUEProcessor
from modeling_cue.media_image import load_image
from modeling_cue.media_pixels import crop_resize, faster_backend, normalise, read_spec

TOWERS = {
    "clip": (CLIPImageProcessor, CLIPImageProcessorPil, {}),
    "vit": (ViTImageProcessor, ViTImageProcessorPil, {}),
    "siglip": (SiglipImageProcessor, SiglipImageProcessorPil, {}),
    "dinov2": (BitImageProcessor, BitImageProcessorPil, {"size": {"shortest_edge": 256}}),
    "convnext": (ConvNextImageProcessor, ConvNextImageProcessorPil, {"size": {"shortest_edge": 224}}),
}


def draw_jpeg(generator: np.random.Generator, width: int, height: int) -> bytes:
    """Noise of every scale, the coarse the strongest: some 1.5 to 2 bits a pixel, as a photograph has."""
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        shape = (max(2, height * cells // 512), max(2, width * cells // 512))
        for channel in range(3):
            noise = Image.fromarray(generator.normal(size=shape).astype(np.float32))
            large = noise.resize((width, height), Image.Resampling.BICUBIC)
            picture[..., channel] += np.asarray(large) / cells**0.5
    picture = (picture - picture.min()) / (picture.max() - picture.min()) * 255
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ways(tower: str, files: list[bytes], folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared, each from files to float32 (N, 3, H, W)."""
    fast, slow, settings = TOWERS[tower]
    torchvision, pillow = fast(**settings), slow(**settings)

    def own(processor):
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        return processor(images, return_tensors="pt")["pixel_values"]

    def cue(**options):
        processor = CUEProcessor(image_processor=torchvision, **options)
        return lambda: processor(images=files)["pixel_values"]

    cached = cache(CUEProcessor(image_processor=torchvision), files, folder)
    return {
        "transformers, Pillow": lambda: own(pillow),
        "transformers, torchvision": lambda: own(torchvision),
        "CUE": cue(),
        "CUE, jpeg_draft=2": cue(jpeg_draft=2),
        "CUE, jpeg_draft=1": cue(jpeg_draft=1),
        "CUE, fast_images=False": cue(fast_images=False),
        "CUE, image cache": cached,
    }


def cache(processor: CUEProcessor, files: list[bytes], folder: Path) -> Callable[[], torch.Tensor]:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    from modeling_cue.training.image_cache import build_image_cache

    rows = Dataset.from_dict(
        {"id": [str(i) for i in range(len(files))], "image": [{"bytes": file, "path": None} for file in files]},
        features=Features({"id": Value("string"), "image": ImageColumn(decode=False)}),
    )
    images = build_image_cache(processor, rows, folder)
    return lambda: processor(images=[images[i] for i in range(len(files))])["pixel_values"]


def parts(tower: str, files: list[bytes]) -> dict[str, Callable[[], object]]:
    """The steps of the fast way, and those that it does without, over all images."""
    spec = read_spec(TOWERS[tower][0](**TOWERS[tower][2]))
    images = [load_image(file) for file in files]
    cut = [crop_resize(image, spec, "torch") for image in images]
    return {
        "decode": lambda: [load_image(file) for file in files],
        "decode, jpeg_draft=2": lambda: [load_image(file, 2 * spec.edge) for file in files],
        "decode, jpeg_draft=1": lambda: [load_image(file, spec.edge) for file in files],
        "resize and crop, torch": lambda: [crop_resize(image, spec, "torch") for image in images],
        "resize the crop's box, Pillow": lambda: [crop_resize(image, spec, "pillow") for image in images],
        "normalise the batch": lambda: normalise(torch.stack(cut).permute(0, 3, 1, 2), spec),
    }


def timed(functions: dict[str, Callable[[], object]], rounds: int, images: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if number:  # the first round warms up
                taken[name].append((time.process_time() - start) * 1e3 / images)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "1024x768", "2048x1536"], metavar="WxH")
    parser.add_argument("--tower", choices=TOWERS, default="clip")
    for name, default in (("images", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = read_spec(TOWERS[arguments.tower][0](**TOWERS[arguments.tower][2]))
    print(f"{arguments.tower}; the faster filter here: {faster_backend()}")
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        generator = np.random.default_rng(0)
        files = [draw_jpeg(generator, width, height) for _ in range(arguments.images)]
        print(f"\n{len(files)} JPEGs of {size}, {sum(map(len, files)) / len(files) / 1024:.0f} KiB each")
        with tempfile.TemporaryDirectory() as folder:
            compared = ways(arguments.tower, files, Path(folder))
            reference = compared["transformers, Pillow"]()
            taken = timed(compared, arguments.rounds, len(files))
            for name, times in taken.items():
                line = f"{name:27}{statistics.median(times):8.2f} ms"
                for base in ("transformers, Pillow", "transformers, torchvision"):
                    ratios = [theirs / mine for theirs, mine in zip(taken[base], times, strict=True)]
                    line += f"  {statistics.median(ratios):6.2f}x ({min(ratios):.2f}, {max(ratios):.2f})"
                levels = (compared[name]() - reference).abs() * torch.tensor(spec.std).view(3, 1, 1) * 255
                print(f"{line}  levels: at most {levels.max():.0f}, mean {levels.mean():.3f}")
        for name, times in timed(parts(arguments.tower, files), arguments.rounds, len(files)).items():
            print(f"  {name:30}{statistics.median(times):8.3f} ms ({min(times):.3f}, {max(times):.3f})")


if __name__ == "__main__":
    main()
