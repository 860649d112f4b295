"""A CUE as the module of a SentenceTransformer: what `SentenceTransformer(name, trust_remote_code=True)` loads.

It travels with every checkpoint, beside the `modules.json` that names it; only sentence-transformers imports it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from .media_files import MODALITY_OF_SUFFIX, MediaError
from .processing_parts import ARGUMENTS, check_text_length, longest_text, text_places
from .tower_sources import public_sources

try:
    from sentence_transformers.base.modality import infer_batch_modality, raise_unsupported_modality_error
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "CUE in sentence-transformers needs version 6.2 or later: pip install -U 'sentence-transformers>=6.2'"
    ) from error


class CUESentenceModule(InputModule):
    """The model and the processor of a checkpoint, as the one module of a SentenceTransformer.

    Args:
        model: a CUEModel. processor: its CUEProcessor.
    """

    save_in_root = True

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def modalities(self) -> list[Any]:
        """Those of text, image, audio and video that the model has."""
        return list(self.model.config.modalities)

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The tokenizer of the text tower; None without one."""
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """Tokens that a text is cut at; None without a text tower. Set to None: as many as tokenizer and tower take.

        Raises:
            ValueError: a length without room for text, over the tower's places, or of a model without text.
        """
        return None if self.tokenizer is None else self.processor.text_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        if self.tokenizer is None:
            raise ValueError(f"max_seq_length={value} is not valid: this CUE has no text tower; leave it out")
        places = text_places(self.model.config.tower_config("text").to_dict())
        if value is None:
            value = places if places and places < longest_text(self.tokenizer) else None
        else:
            check_text_length("max_seq_length", value, self.tokenizer, places)
        self.processor.max_text_length = value

    def get_embedding_dimension(self) -> int:
        """D, the number of coordinates of an axis."""
        return self.model.config.projection_dim

    def preprocess(  # type: ignore[override]
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None
    ) -> dict[str, Any]:
        """The model's input for a batch of one modality.

        Args:
            inputs: texts; images as PIL, path or array (3 axes); sounds as path or {"array", "sampling_rate"}; videos
                as path, array (4 axes) or {"array", "video_metadata"}; each also as {modality: value}, as which the
                value may be whatever CUEProcessor takes, such as bytes or the frames of a clip.
            prompt: put before every text, after the tower's own prefix.
            task: of no effect: queries and documents are embedded alike.

        Returns:
            What CUEProcessor returns, and `modality`.

        Raises:
            ValueError: an input of no known modality, or several modalities; sound without its sampling rate; a file
                that cannot be read (MediaError).
        """
        modality = infer_batch_modality(inputs, supported_modalities=self.modalities)
        if modality not in self.modalities:
            raise_unsupported_modality_error(inputs, modality, self.modalities, "CUE")
        if modality == "text":
            _check_no_lost_file(inputs)
        values = [_value(one, str(modality)) for one in inputs]
        if modality == "text" and prompt:
            values = [prompt + text for text in values]
        # Like other models here: one empty document does not end the embedding of a corpus.
        options = {"allow_empty": True} if modality == "text" else {}
        return {**self.processor(**{ARGUMENTS[str(modality)]: values}, **options), "modality": modality}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """The cones of a batch: `sentence_embedding` (N, D), unit axes, and `radius` (N,), radians in (0, pi)."""
        modality = features.get("modality", "text")
        inputs = {name: features[name] for name in self.processor.model_input_names if name in features}
        cones = getattr(self.model, f"get_{modality}_cones")(**inputs)
        return {"sentence_embedding": cones.axis, "radius": cones.radius}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes model and processor as their own `save_pretrained` do."""
        with public_sources(self.model.config):  # what is pushed is saved by this too
            self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        *,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> "CUESentenceModule":
        """The model and the processor that lie where `modules.json` does; arguments as of SentenceTransformer.

        Raises:
            ValueError: another backend than torch, or `config_kwargs`, which a CUE takes none of.
        """
        if backend != "torch":
            raise ValueError(f"backend={backend!r} is not valid; CUE runs in torch: leave it out")
        if config_kwargs:
            raise ValueError(f"config_kwargs={config_kwargs} has no effect on a CUE: pass model_kwargs")
        options = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        model = AutoModel.from_pretrained(model_name_or_path, **options | (model_kwargs or {}))
        processor = AutoProcessor.from_pretrained(model_name_or_path, **options | (processor_kwargs or {}))
        return cls(model.eval(), processor)


def _check_no_lost_file(texts: Sequence[Any]) -> None:
    """Refuses the name of a file that is not there: one that is was taken for what it holds."""
    for text in texts:
        suffix = Path(text).suffix.lower() if isinstance(text, str) and len(text.split()) == 1 else ""
        if MODALITY_OF_SUFFIX.get(suffix, "text") != "text":
            raise MediaError(f"there is no file {text!r}: look at the path, or give {{'text': ...}} to embed its name")


def _value(sample: Any, modality: str) -> Any:
    """The value itself, out of what sentence-transformers wraps it in."""
    if isinstance(sample, dict) and sample.keys() == {modality}:
        sample = sample[modality]
    if isinstance(sample, dict) and "video_metadata" in sample:
        return sample["array"]
    if modality == "audio" and isinstance(sample, np.ndarray | Tensor):
        raise ValueError(
            "an array of sound comes without its sampling rate: give {'array': samples, 'sampling_rate': Hz}"
        )
    return sample
