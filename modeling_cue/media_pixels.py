"""Images as a tower wants them: computes only the pixels that are used, each once.

A tower's image processor is read into a `PixelSpec` where its settings can be told in one: resize the short edge and
crop the middle, or squash to a size; then rescale and normalise. What cannot be told is left to the processor itself.

Differences from the tower's own processor, in levels of 8 bits, over images of 250 odd sizes with hard edges: Pillow's
filter from Pillow's processors (timm's among them) at most 1, 0.0001 on average; torch's filter from torchvision's
processors 0. Across the two, as between transformers' own two backends: 0.03 on average, mostly at most 1, but 4 and
more on hard edges of images twice as high as wide, where Pillow takes the rows first. A JPEG decoded at a part of its
size differs by more, so that is a switch of its own (`jpeg_draft`), which is off.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from .media_image import load_image

BILINEAR, BICUBIC, LANCZOS = (int(Image.Resampling[name]) for name in ("BILINEAR", "BICUBIC", "LANCZOS"))
TORCH_FILTERS = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC, "lanczos": LANCZOS}
# A processor of transformers does what its settings say if it has these methods from its backend.
METHODS = (
    "__call__", "preprocess", "_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize",
    "rescale_and_normalize",
)  # fmt: skip
WARP_FROM = 384  # from this size on, ConvNeXT's processor squashes in place of cropping


@dataclass(frozen=True)
class PixelSpec:
    """What an image processor does, in one line of settings.

    Args:
        resize: the short edge, or (height, width) that the image is squashed to.
        crop: (height, width) cut from the middle.
        rounds: whether half a pixel of the crop's place is rounded to even, as in torchvision, or down.
        resample: Pillow's number of the filter: 2 bilinear, 3 bicubic, 1 Lanczos.
        mean, std: by channel, of values from 0 to 1.
        rescale: what 8-bit values are multiplied with, 1/255.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    rounds: bool
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float

    @property
    def edge(self) -> int:
        """Pixels that both sides of an image need at least, so that nothing is made up."""
        return self.resize if isinstance(self.resize, int) else max(self.resize)

    def place(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height that an image is resized to, and left and top of the crop in it."""
        if isinstance(self.resize, int):
            longer = int(self.resize * max(width, height) / min(width, height))
            new_width, new_height = (self.resize, longer) if width <= height else (longer, self.resize)
        else:
            new_height, new_width = self.resize
        spare = (new_width - self.crop[1], new_height - self.crop[0])
        left, top = (round(s / 2) if self.rounds else s // 2 for s in spare)
        return new_width, new_height, left, top


@dataclass(frozen=True)
class Prepared:
    """An image that is decoded, resized and cropped for a tower already: uint8 (H, W, 3)."""

    pixels: Tensor


def mirror(image: Prepared | Image.Image) -> Prepared | Image.Image:
    """Left and right exchanged: of what a tower sees, as it mirrors images itself."""
    return Prepared(image.pixels.flip(1)) if isinstance(image, Prepared) else ImageOps.mirror(image)


def random_crop(image: Prepared | Image.Image, scale: float) -> Image.Image:
    """A random part of an image, of the share `scale` of its area at least.

    The share and the log of the stretch (up to 4/3 between the sides) are uniform, after Szegedy et al., "Going deeper
    with convolutions" (CVPR 2015, section 6); what does not fit in the image is cut to it.
    """
    whole = Image.fromarray(image.pixels.numpy()) if isinstance(image, Prepared) else image
    area, shape, left, top = torch.rand(4).tolist()
    side, stretch = math.sqrt(scale + (1 - scale) * area), (4 / 3) ** (shape - 0.5)
    shares = (side * stretch, side / stretch)
    width, height = (max(1, round(n * min(1.0, s))) for n, s in zip(whole.size, shares, strict=True))
    x, y = round(left * (whole.width - width)), round(top * (whole.height - height))
    return whole.crop((x, y, x + width, y + height))


# ---------------------------------------------------------------------- reading a processor's settings


def read_spec(image_processor: Any) -> PixelSpec | None:
    """The settings of a transformers image processor, or None where they are more than a `PixelSpec` can tell."""
    kind = type(image_processor)
    if kind.__name__ == "TimmWrapperImageProcessor":
        return _spec_of_transforms(image_processor.val_transforms.transforms)
    backend = next((b for b in (TorchvisionBackend, PilBackend) if isinstance(image_processor, b)), None)
    if backend is None:
        return None
    changed = {m for m in METHODS if getattr(kind, m, None) is not getattr(backend, m, None)}
    convnext = kind.__name__.removesuffix("Pil") == "ConvNextImageProcessor"
    video = kind.__name__.removesuffix("Pil") == "VideoMAEImageProcessor"  # the same for each frame of lists of frames
    if changed - ({"_preprocess", "resize"} if convnext else {"preprocess", "_preprocess"} if video else set()):
        return None
    settings = image_processor.to_dict()
    needed = ("do_resize", "do_rescale", "do_normalize")
    if not all(settings.get(name) for name in needed) or settings.get("do_pad"):
        return None
    size, crop = _sizes(settings.get("size")), None
    if settings.get("do_center_crop"):
        crop = _sizes(settings.get("crop_size"))
        if not isinstance(crop, tuple):
            return None
    if convnext:
        if not isinstance(size, int) or crop is not None:
            return None
        if size >= WARP_FROM:
            size = (size, size)
        else:
            size, crop = int(size / settings["crop_pct"]), (size, size)
    return _spec(
        size, crop, False, settings.get("resample"), settings["image_mean"], settings["image_std"],
        settings["rescale_factor"],
    )  # fmt: skip


def _sizes(size: Any) -> int | tuple[int, int] | None:
    given = {name: value for name, value in (size or {}).items() if value is not None}
    if set(given) == {"shortest_edge"}:
        return int(given["shortest_edge"])
    return (int(given["height"]), int(given["width"])) if set(given) == {"height", "width"} else None


def _spec_of_transforms(transforms: Sequence[Any]) -> PixelSpec | None:
    names = [type(transform).__name__ for transform in transforms]
    if names not in (["Resize", "CenterCrop", last, "Normalize"] for last in ("MaybeToTensor", "ToTensor")):
        return None
    resize, crop, _, normalise = transforms
    if resize.max_size is not None:
        return None
    size = resize.size
    if not isinstance(size, int):
        size = int(size[0]) if len(size) == 1 else (int(size[0]), int(size[1]))
    mean, std = (torch.as_tensor(values).tolist() for values in (normalise.mean, normalise.std))
    return _spec(size, tuple(crop.size), True, FILTERS.get(resize.interpolation.value), mean, std, 1 / 255)


def _spec(size: Any, crop: Any, rounds: bool, resample: Any, mean: Any, std: Any, rescale: float) -> PixelSpec | None:
    if crop is None and isinstance(size, tuple):
        crop = size
    if size is None or crop is None or resample is None or int(resample) not in FILTERS.values():
        return None
    if any(not isinstance(values, Sequence) or len(values) != 3 for values in (mean, std)):
        return None
    short = (size, size) if isinstance(size, int) else size
    if crop[0] > short[0] or crop[1] > short[1]:  # the processor would add a border
        return None
    return PixelSpec(size, crop, rounds, int(resample), tuple(mean), tuple(std), float(rescale))


def without_crop(image_processor: Any) -> Any:
    """The same image processor, but for squashing the whole image to the size that it cropped.

    Raises:
        ValueError: the class cannot do so.
    """
    if type(image_processor).__name__ == "TimmWrapperImageProcessor":
        config = {**image_processor.data_config, "crop_pct": 1.0, "crop_mode": "squash"}
        return transformers.TimmWrapperImageProcessor(config, image_processor.architecture)
    settings = image_processor.to_dict()
    if settings.get("do_center_crop"):
        settings |= {"do_center_crop": False, "size": settings["crop_size"]}
    whole = type(image_processor)(**settings)
    if (spec := read_spec(whole)) and spec.resize != spec.crop:
        raise ValueError(
            f"{type(whole).__name__} cuts the middle out of every image at this size: leave out whole_image"
        )
    return whole


# ---------------------------------------------------------------------- pixels


def crop_resize(image: Image.Image, spec: PixelSpec, backend: str) -> Tensor:
    """An RGB image resized and cropped: uint8 (H, W, 3).

    Args:
        backend: "pillow" computes only the columns of the crop; "torch" all, of which the crop is cut: torch's filter
            takes no box, and is some five times faster.
    """
    width, height = image.size
    new_width, new_height, left, top = spec.place(width, height)
    rows, columns = spec.crop
    if backend == "torch" and spec.resample in TORCH_FILTERS:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(
            pixels, (new_height, new_width), mode=TORCH_FILTERS[spec.resample], antialias=True
        )
        return resized[0, :, top : top + rows, left : left + columns].permute(1, 2, 0)
    # Rounding may carry the box over the edge by the last digit, which Pillow refuses. A box from above would change
    # the order of Pillow's two passes, and with it pixels: tall images are cut after.
    across = width / new_width
    box = (left * across, 0, min((left + columns) * across, width), height)
    columns_only = image.resize((columns, new_height), Image.Resampling(spec.resample), box=box)
    return torch.from_numpy(np.array(columns_only)[top : top + rows])


def normalise(pixels: Tensor, spec: PixelSpec) -> Tensor:
    """float32 (..., 3, H, W) of uint8 pixels of that shape, rescaled and normalised in one pass, on their device."""
    values = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device).copy_(pixels)
    mean, std = _levels(spec, pixels.device)
    return values.sub_(mean).div_(std)


@lru_cache
def _levels(spec: PixelSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel (3, 1, 1) in levels of 8 bits; kept, as a copy to a device waits for it."""
    mean, std = (torch.tensor(values).mul_(1 / spec.rescale).view(3, 1, 1) for values in (spec.mean, spec.std))
    return mean.to(device), std.to(device)


def faster_backend() -> str:
    """Which of torch and pillow resizes a photograph faster on this machine: "torch" where its kernel is vectorised.

    Asked of the processor, not of a clock: what is measured differs from process to process, and with it the pixels.
    `benchmarks/images.py` measures both.
    """
    return "torch" if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else "pillow"


def _settings(image_processor: Any) -> dict[str, Any]:
    """All that an image processor holds; of timm's transforms, which know no equality, how they are written."""
    held = vars(image_processor)
    return {name: repr(value) if name.endswith("_transforms") else value for name, value in held.items()}


class ImagePipeline:
    """From values as `load_image` takes them to `pixel_values`, as an image processor's settings say.

    Args:
        fast: by `crop_resize` and `normalise` where a `PixelSpec` tells the settings; else by the processor itself.
        jpeg_draft: how many times the spec's pixels a JPEG keeps along each side where it is decoded at a part of its
            size; 0: JPEGs are decoded whole.
    """

    def __init__(self, image_processor: Any, fast: bool, jpeg_draft: int):
        self.image_processor, self.fast, self.jpeg_draft = image_processor, fast, jpeg_draft
        self.spec = read_spec(image_processor) if fast else None
        self.backend = faster_backend() if self.spec else ""
        self._settings = copy.deepcopy(_settings(image_processor))

    def is_of(self, image_processor: Any, fast: bool, jpeg_draft: int) -> bool:
        """Whether it was made of these, and the image processor has not changed since."""
        same = image_processor is self.image_processor and (fast, jpeg_draft) == (self.fast, self.jpeg_draft)
        return same and _settings(image_processor) == self._settings

    def prepare(self, value: Any) -> Prepared | Image.Image:
        """One image decoded, cropped and resized; what is prepared already, and of these settings, comes back.

        Raises:
            MediaError: unreadable. ValueError: prepared by other settings.
        """
        if isinstance(value, Prepared):
            if self.spec is None or tuple(value.pixels.shape) != (*self.spec.crop, 3):
                raise ValueError(
                    f"this image of {tuple(value.pixels.shape)} was prepared by a processor of other settings: give "
                    "the image itself"
                )
            return value
        image = load_image(value, self.jpeg_draft * self.spec.edge if self.spec else 0)
        return Prepared(crop_resize(image, self.spec, self.backend)) if self.spec else image

    def batch(self, values: Sequence[Any]) -> Tensor:
        """(N, 3, H, W) of N values, prepared or not; raises as `prepare`.

        uint8 where a spec tells the settings, for `normalise`; else float32 as the image processor gives them.
        """
        images: list[Any] = [self.prepare(value) for value in values]
        if self.spec is None:
            # A video's processor takes them for the frames of one video, (1, N, 3, H, W).
            return self.image_processor(images, return_tensors="pt")["pixel_values"].flatten(0, -4)
        return torch.stack([image.pixels for image in images]).permute(0, 3, 1, 2)

    def normalise(self, pixels: Tensor) -> Tensor:
        """float32 pixels as the tower wants them, of what `batch` gave; those that are float already come back."""
        return normalise(pixels, self.spec) if self.spec and pixels.dtype == torch.uint8 else pixels
