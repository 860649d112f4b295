"""One crop-resize and one normalisation beside the towers' own image processors, in levels of 8 bits."""

import io

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import ExifTags, Image

from modeling_cue import CUEProcessor
from modeling_cue.media_image import load_image
from modeling_cue.media_pixels import (
    Prepared,
    crop_resize,
    faster_backend,
    mirror,
    normalise,
    random_crop,
    read_spec,
    without_crop,
)

# Odd, tall, wide, smaller than the target, and of the target's size; width by height.
SIZES = ((125, 93), (83, 125), (255, 50), (37, 151), (21, 30), (56, 56))
SMALL = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
SQUARE = {"size": {"height": 56, "width": 56}}
FAMILIES = {
    "CLIP": SMALL,
    "ViT": SQUARE,
    "DeiT": {"size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}},
    "Siglip": SQUARE,
    "Bit": {"size": {"shortest_edge": 64}, "crop_size": {"height": 55, "width": 57}},
    "ConvNext": {"size": {"shortest_edge": 57}, "crop_pct": 0.875},
}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise of several scales with hard edges over it, as photographs have both."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells in (3, 12, 48):
        noise = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        picture += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 3
    picture[height // 3 : height // 2, width // 4 :: 5] = rng.integers(0, 255, 3)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def timm_processor(**changes):
    config = {
        "input_size": [3, 56, 56], "crop_pct": 0.875, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
    }  # fmt: skip
    return hf.TimmWrapperImageProcessor(config | changes, "test_convnext")


def own_processors():
    for family, settings in FAMILIES.items():
        for ending in ("ImageProcessor", "ImageProcessorPil"):
            yield pytest.param(getattr(hf, family + ending)(**settings), id=family + ending)
    for name, changes in {
        "center": {}, "odd": {"input_size": [3, 57, 57]}, "bilinear": {"interpolation": "bilinear"},
        "squash": {"crop_mode": "squash", "crop_pct": 1.0}, "squash and crop": {"crop_mode": "squash"},
    }.items():  # fmt: skip
        yield pytest.param(timm_processor(**changes), id=f"timm {name}")


@pytest.mark.parametrize("own", list(own_processors()))
def test_the_towers_own_pixels(own):
    """The bounds that the docstring of `media_pixels` states; transformers' two backends differ by as much."""
    spec, images = read_spec(own), [photo(*size) for size in SIZES]
    theirs = own(images, return_tensors="pt")["pixel_values"]
    level = spec.rescale / torch.tensor(spec.std).view(3, 1, 1)
    same = "torch" if isinstance(own, hf.image_processing_backends.TorchvisionBackend) else "pillow"
    for backend in ("torch", "pillow"):
        cut = [crop_resize(image, spec, backend) for image in images]
        ours = normalise(torch.stack(cut).permute(0, 3, 1, 2), spec)
        assert ours.shape == theirs.shape
        assert ours.is_contiguous()
        difference = (ours - theirs).abs() / level
        if backend != same:
            assert difference.max() < 10.01
            assert difference.mean() < 0.1
        elif backend == "torch":
            assert torch.equal(ours, theirs)
        else:
            assert difference.max() < 1.01
            assert difference.mean() < 0.001


@pytest.mark.parametrize(
    "own",
    [
        hf.EfficientNetImageProcessor(), hf.BeitImageProcessor(), hf.MobileViTImageProcessor(),
        hf.LevitImageProcessor(), hf.Siglip2ImageProcessor(), hf.DINOv3ViTImageProcessor(),
        hf.CLIPImageProcessor(do_pad=True), hf.CLIPImageProcessor(do_center_crop=False),
        hf.CLIPImageProcessor(do_normalize=False), hf.CLIPImageProcessor(do_rescale=False),
        hf.ViTImageProcessor(do_resize=False), hf.CLIPImageProcessor(resample=0),
        hf.CLIPImageProcessor(crop_size={"height": 256, "width": 256}),
        hf.CLIPImageProcessor(size={"shortest_edge": 224, "longest_edge": 300}),
        timm_processor(crop_mode="border"), timm_processor(interpolation="nearest"),
        timm_processor(input_size=[3, 56, 64]),
    ],
    ids=lambda own: type(own).__name__,
)  # fmt: skip
def test_what_settings_cannot_tell_is_left_to_the_processor(own):
    assert read_spec(own) is None


def test_the_processor_falls_back_exactly():
    images = [photo(125, 93), photo(83, 125)]
    for own in (hf.MobileViTImageProcessor(), hf.CLIPImageProcessor(do_pad=True)):
        theirs = own(images, return_tensors="pt")["pixel_values"]
        assert torch.equal(CUEProcessor(image_processor=own)(images=images)["pixel_values"], theirs)
    own = hf.CLIPImageProcessorPil(**SMALL)
    theirs = own(images, return_tensors="pt")["pixel_values"]
    processor = CUEProcessor(image_processor=own, fast_images=False)
    assert torch.equal(processor(images=images)["pixel_values"], theirs)
    processor.fast_images = True
    assert processor.pipeline.spec is not None
    assert not torch.equal(processor(images=images)["pixel_values"], theirs)
    own.image_mean = [0.0, 0.0, 0.0]  # a change of the processor is seen
    assert processor(images=images)["pixel_values"].min() >= 0


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


@pytest.mark.parametrize(
    "file",
    [
        encoded(photo(125, 93), "JPEG"), encoded(photo(125, 93).convert("L"), "JPEG"),
        encoded(photo(125, 93).convert("CMYK"), "JPEG"), encoded(photo(125, 93).convert("RGBA"), "PNG"),
        encoded(photo(125, 93).quantize(16), "PNG"), encoded(photo(125, 93), "JPEG", exif=turned()),
    ],
    ids=["JPEG", "grey", "CMYK", "RGBA", "palette", "turned"],
)  # fmt: skip
def test_files_of_every_kind(file):
    own = hf.CLIPImageProcessor(**SMALL)
    fast, slow = (CUEProcessor(image_processor=own, fast_images=fast) for fast in (True, False))
    levels = (fast(images=file)["pixel_values"] - slow(images=file)["pixel_values"]).abs() * 255 * 0.27
    assert levels.max() < (0.01 if faster_backend() == "torch" else 10.01)


def test_jpegs_are_decoded_at_a_part_of_their_size_where_enough_is_left():
    file = encoded(photo(240, 180), "JPEG", quality=95)
    assert load_image(file).size == (240, 180)
    assert load_image(file, 90).size == (120, 90)
    assert load_image(file, 91).size == (240, 180)
    assert load_image(file, 40).size == (60, 45)
    assert load_image(encoded(photo(240, 180), "PNG"), 90).size == (240, 180)
    own = hf.CLIPImageProcessor(**SMALL)
    whole = CUEProcessor(image_processor=own)(images=file)["pixel_values"]
    for draft, bound in ((4, 1e-6), (1, 5)):  # 56 pixels fit thrice into 180: a half at 1, nothing at 4
        part = CUEProcessor(image_processor=own, jpeg_draft=draft)(images=file)["pixel_values"]
        levels = (part - whole).abs().mean() * 255 * 0.27
        assert levels <= bound
        assert (levels > 0) == (draft == 1)
    with pytest.raises(ValueError, match="jpeg_draft=-1 is not valid"):
        CUEProcessor(jpeg_draft=-1)


def test_a_user_image_is_neither_copied_nor_changed():
    image = photo(30, 20)
    assert load_image(image, 5) is image
    lazy = Image.open(io.BytesIO(encoded(photo(240, 180), "JPEG")))
    assert load_image(lazy, 40).size == lazy.size == (240, 180)


def test_prepared_images_are_taken_as_they_are():
    processor = CUEProcessor(image_processor=hf.CLIPImageProcessor(**SMALL), num_frames=2)
    image = processor.pipeline.prepare(photo(125, 93))
    assert isinstance(image, Prepared)
    both = processor(images=[image, mirror(image)])["pixel_values"]
    assert torch.equal(both[0], both[1].flip(-1))
    assert torch.equal(both[:1], processor(images=photo(125, 93))["pixel_values"])
    other = CUEProcessor(image_processor=hf.CLIPImageProcessor())
    with pytest.raises(ValueError, match="prepared by a processor of other settings: give the image itself"):
        other(images=[image])


def test_the_switches_travel(tmp_path):
    settings = {"fast_images": False, "jpeg_draft": 2}
    CUEProcessor(image_processor=hf.CLIPImageProcessor(**SMALL), **settings).save_pretrained(tmp_path)
    again = CUEProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in settings} == settings
    assert again.pipeline.spec is None


@pytest.mark.parametrize("size", SIZES)
def test_random_crops_lie_in_the_image_and_are_as_large_as_asked(size):
    # Every pixel tells its place.
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    whole = Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))
    torch.manual_seed(0)
    shares, corners = [], set()
    for given in (whole, Prepared(torch.from_numpy(np.array(whole)))):
        for _ in range(100):
            part = np.asarray(random_crop(given, 0.25)).astype(int)
            rows, columns = part.shape[:2]
            left, top = part[0, 0, :2]
            assert (part[-1, -1, :2] == (left + columns - 1, top + rows - 1)).all()
            shares.append(rows * columns / (size[0] * size[1]))
            corners.add((int(left), int(top)))
    # What is stretched beyond the image is cut to it, by 4/3 under a square root in area at most.
    assert 0.25 * 0.75**0.5 - 0.05 < min(shares) < 0.4
    assert 0.9 < max(shares) <= 1
    assert len(corners) > 20
    assert np.array_equal(np.asarray(random_crop(whole, 1.0).size) <= np.asarray(size), [True, True])


def test_a_class_that_always_cuts_the_middle_out_cannot_take_the_whole():
    with pytest.raises(ValueError, match="ConvNextImageProcessor.* cuts the middle out of every image at this size"):
        without_crop(hf.ConvNextImageProcessor(size={"shortest_edge": 224}))
    assert read_spec(without_crop(hf.ConvNextImageProcessor(size={"shortest_edge": 384}))).resize == (384, 384)


@pytest.mark.parametrize("family", ["clip", "timm"])
def test_the_pipeline_is_made_once_and_again_when_the_processor_changes(encoders, family):
    processor = CUEProcessor.from_encoders(image=str(encoders[family]))
    made, changed = processor.pipeline, without_crop(processor.image_processor)
    assert processor.pipeline is made
    vars(processor.image_processor).update(vars(changed))
    assert processor.pipeline is not made
