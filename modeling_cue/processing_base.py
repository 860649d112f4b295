"""A processor of parts that may be missing: how it is saved and loaded, and what it hands on to its tokenizer."""

from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from .processing_parts import PARTS, check_processor_is_there, image_part
from .saving import written_aside


class _Parts:
    """`get_attributes` of `ProcessorMixin`: of the class all parts, of a processor those that it has."""

    def __get__(self, processor: Any, owner: type) -> Any:
        return lambda: [part for part in PARTS if processor is None or getattr(processor, part) is not None]


class PartsProcessor(ProcessorMixin):
    """`ProcessorMixin` for parts of which some are None, and images prepared by more than one of them."""

    get_attributes = _Parts()  # type: ignore[assignment]

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """As the tokenizer's."""
        return self._tokenizer().batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """As the tokenizer's."""
        return self._tokenizer().decode(*args, **kwargs)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("this processor has no tokenizer, so it decodes no text: give it one by tokenizer=")
        return self.tokenizer

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `ProcessorMixin`; where saving fails, what was in the folder before is still whole."""
        with written_aside(save_directory) as folder:
            saved = super().save_pretrained(str(folder), *args, **kwargs)
        return [str(Path(save_directory) / Path(path).relative_to(folder)) for path in saved or []]

    def to_dict(self) -> dict[str, Any]:
        """As in `ProcessorMixin`, with the names of the parts that there are."""
        output = {name: value for name, value in super().to_dict().items() if name not in PARTS or value is not None}
        return output | {"parts": self.get_attributes()}

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        processor_dict = processor_dict if processor_dict is not None else {}
        if not processor_dict.keys() & {"parts", "processor_class"}:
            check_processor_is_there(pretrained_model_name_or_path, **kwargs)
        present = processor_dict.pop("parts", [part for part in PARTS if part != "frame_image_processor"])
        arguments: list[Any] = []
        for part, auto in PARTS.items():
            saved = processor_dict.get(part) or {}
            if part not in present:
                arguments.append(None)
            elif part == "frame_image_processor" or saved.get("image_processor_type") == "TimmWrapperImageProcessor":
                # The Auto class knows one image processor, and looks for timm's settings in the model's config.json.
                arguments.append(image_part(saved))
            else:
                arguments.append(auto.from_pretrained(pretrained_model_name_or_path, **kwargs))
        return arguments
