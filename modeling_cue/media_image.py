"""Images from whatever a user or a data set has at hand."""

from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .media_files import FILES, MediaError, open_source, to_array

MAX_PIXELS = 80_000_000  # of an image: more is taken for a decompression bomb
MAX_ASPECT = 200  # long side to short side: resizing the short side would blow up the long one


def load_image(value: Any, draft_edge: int = 0) -> Image.Image:
    """An RGB image. Palette, grey, CMYK and 16-bit are converted, alpha is laid over white, EXIF turns are applied.

    Args:
        value: path, bytes, open binary file, {"bytes", "path"}, Pillow image, or array (H, W), (H, W, 1|3|4),
            (3, H, W): uint8, uint16, or float in [0, 1]. A Pillow image that is RGB already comes back itself; one of
            mode I, of 32 bits, is taken for 8 bits where it has no value over 255, else for 16, as I;16 and uint16
            always are.
        draft_edge: the file of a JPEG is decoded at a half, a quarter or an eighth of its size where that leaves both
            sides this many pixels, which skips most of the work; 0 decodes the whole.

    Raises:
        MediaError: missing, truncated, no image, over 80 million pixels, over 200 times as long as wide.
    """
    if isinstance(value, Image.Image):
        return _read_image(value, "the image")
    if not isinstance(value, FILES):
        return _read_image(_image_of_array(to_array(value, "image")), "the image")
    with open_source(value, "image") as (file, name):
        return _read_image(file, name, draft_edge)


def _read_image(source: Any, name: str, draft_edge: int = 0) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, name)
        with Image.open(source) as image:
            _check_size(image, name)
            if draft_edge:
                image.draft(None, (draft_edge, draft_edge))
            return _to_rgb(image, name)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} is too large to be decoded safely: shrink it ({error})") from error
    except UnidentifiedImageError as error:  # what Pillow says of it is where an object lies in memory
        raise MediaError(
            f"{name} is no image that can be read: it is damaged, cut off, or in a format that Pillow does not know "
            "(HEIC needs pillow-heif): replace or convert it"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise MediaError(f"{name} is no image that can be read, or is cut off: replace it ({error})") from error


def _check_size(image: Image.Image, name: str) -> None:
    # Only the header has been read so far: what is too large is refused before memory is spent on it.
    short, long = sorted(image.size)
    if not short:
        raise MediaError(f"{name} has no pixels: replace it")
    if short * long > MAX_PIXELS:
        raise MediaError(f"{name} has {image.width} x {image.height} pixels, over {MAX_PIXELS:,}: shrink it")
    if long > MAX_ASPECT * short:
        raise MediaError(f"{name} of {image.width} x {image.height} is over {MAX_ASPECT} to 1 in shape: crop it")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    image.load()  # before its metadata, whose errors are forgiven
    # Both would copy an image that is as it should be.
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        image = _image_of_array(np.asarray(image))
    elif image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits_of(image))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        return image.convert("RGB")
    return image


def _eight_bits_of(image: Image.Image) -> np.ndarray:
    """An image of mode I or I;16 in 8 bits: 16 bits are scaled, and 32 bits that end at 255 are 8 already."""
    values = np.asarray(image).clip(0, 65535)
    # Pillow's own `convert("I")` leaves values as they are; of PGM files it reads those of over 8 bits so, scaled.
    if image.mode == "I" and image.format != "PPM" and values.max() <= 255:
        return values.astype(np.uint8)
    return _eight_bits(values)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata is no reason to lose a good image, and raises nearly anything
        return 1


def _image_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise MediaError(f"an array of shape {array.shape} is no image: give (H, W), (H, W, 3) or (3, H, W)")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise MediaError("an image of floating point must lie in [0, 1]: scale it, or give uint8")
        array = (array * 255).round()
    elif array.dtype == np.uint16:
        array = _eight_bits(array)
    elif array.dtype != np.uint8:
        raise MediaError(f"an image array must be uint8, uint16 or float in [0, 1]; got {array.dtype}: convert it")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values to 8 bits, rounded: 65535 becomes 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
