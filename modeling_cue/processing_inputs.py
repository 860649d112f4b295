"""What a CUEProcessor is given, one item or many in whatever holds them, as lists; and what is no text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image

from .media_audio import is_sampled
from .media_files import FILES

# What is iterable but no list of texts: it would be taken for its keys or bytes, or has no order.
NO_TEXTS = (Mapping, set, frozenset, bytes, bytearray, memoryview, Image.Image, np.ndarray, torch.Tensor)


def without_columns(values: Any) -> Any:
    """A column of text or of objects, of NumPy or pandas, or what an iterator gives, as a list; all else as it is.

    Raises:
        TypeError: a table.
    """
    of_pandas = type(values).__module__.split(".")[0] == "pandas"
    if of_pandas and type(values).__name__ == "DataFrame":
        raise TypeError("a DataFrame is a table: give one column, such as df['caption']")
    of_numpy = isinstance(values, np.ndarray) and values.dtype.kind in "UO"
    if of_pandas or of_numpy:
        return values.tolist()
    # An open file is an iterator too, over lines.
    return list(values) if isinstance(values, Iterator) and not isinstance(values, FILES) else values


def listed_texts(text: Any) -> list[Any]:
    """A list of one text or of several, which `check_text` looks at.

    Raises:
        TypeError: neither a text nor a list of texts.
    """
    if isinstance(text, str):
        return [text]
    if isinstance(text, Iterable) and not isinstance(text, NO_TEXTS):
        return list(text)
    raise TypeError(f"text is a {type(text).__name__}, which is no text and no list of texts: {_remedy(text)}")


def check_text(number: int, text: Any, allow_empty: bool = False) -> None:
    """Refuses the text of this number in a list where it is empty or no text, by a ValueError."""
    if text is None or (isinstance(text, str) and not (allow_empty or text.strip())):
        raise ValueError(f"text number {number} is empty or no text ({text!r}): leave it out")
    if not isinstance(text, str):
        raise ValueError(f"text number {number} is a {type(text).__name__}, which is no text: {_remedy(text)}")


def _remedy(value: Any) -> str:
    if isinstance(value, Image.Image | np.ndarray | torch.Tensor):
        return "give an image as images=, sound as audio=, a clip as videos="
    if isinstance(value, Mapping):
        return "give the text that it holds, such as row['caption']"
    if isinstance(value, bytes | bytearray | memoryview):
        return "decode text, as value.decode(), and give media as images=, audio= or videos="
    if isinstance(value, list | tuple):
        return "of a list of captions give one text each"
    return "give a str or a list of str"


def listed(values: Any, frames: bool = False) -> list[Any]:
    """A list of items from one item or several. With `frames`, a list of images is one video."""
    if isinstance(values, np.ndarray | torch.Tensor):
        return list(values) if values.ndim == (5 if frames else 4) else [values]
    # Columns of `datasets` are sequences too.
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray | memoryview):
        return [values]
    if is_sampled(values) or isinstance(values[0], Real) or (frames and _is_image(values[0])):
        return [values]
    return list(values)


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3)
