"""CUEProcessor: from text, images, audio and video to the input of a CUEModel."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature

from .media_audio import load_audio
from .media_extract import extract
from .media_pixels import ImagePipeline, without_crop
from .media_video import load_video
from .processing_base import PartsProcessor
from .processing_inputs import check_text, listed, listed_texts, without_columns
from .processing_parts import (
    HUB_OPTIONS,
    check_text_length,
    length_of_call,
    load_part,
    longest_text,
    text_habits,
    video_habits,
)

TEXT_OPTIONS = ("padding", "truncation", "max_length", "allow_empty")  # of a call, handed to the tokenizer


class CUEProcessor(PartsProcessor):
    """Prepares any subset of text, images, audio and video; video frame by frame, as images are.

    Args:
        tokenizer, image_processor, feature_extractor: the parts of the towers; None where the model lacks a modality.
        frame_image_processor: prepares frames of video; None: as images are.
        text_prefix: put before every text, such as "query: " for E5.
        text_padding: "longest" pads texts to the longest of a batch, "max_length" to `max_text_length`, as SigLIP
            needs.
        max_text_length: longest text in tokens; None takes the tokenizer's own.
        num_frames: frames that a video is sampled to; the model's `num_frames`.
        audio_padding: "longest" pads audio to the longest of a batch, "max_length" to the extractor's 30 s; AST and
            CLAP have one length of their own.
        fast_images: crops and resizes in one step and normalises by batch, where the image processor's settings can
            be read (`media_pixels` states the differences); False: the image processor does it.
        jpeg_draft: with `fast_images`, JPEG files are decoded at a half, a quarter or an eighth of their size while
            this many times the tower's pixels remain along each side. 0: never; 1: files of at least twice the
            target, some 2 levels of 255 from the whole on average; 2: of at least four times, 0.6 to 1 level.

    Raises:
        ValueError: a setting is out of its range.
    """

    model_input_names = [  # noqa: RUF012
        "input_ids", "attention_mask", "pixel_values", "input_features", "input_features_mask", "pixel_values_videos",
    ]  # fmt: skip

    def __init__(
        self,
        tokenizer: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
        frame_image_processor: Any = None,
        text_prefix: str = "",
        text_padding: str = "longest",
        max_text_length: int | None = None,
        num_frames: int = 8,
        audio_padding: str = "longest",
        fast_images: bool = True,
        jpeg_draft: int = 0,
    ):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.feature_extractor = feature_extractor
        self.frame_image_processor = frame_image_processor
        self.chat_template = None
        self.text_prefix = text_prefix
        self.text_padding = text_padding
        self.max_text_length = max_text_length
        self.num_frames = num_frames
        self.audio_padding = audio_padding
        self.fast_images = fast_images
        self.jpeg_draft = jpeg_draft
        self._pipelines: dict[str, ImagePipeline] = {}
        for name, padding in {"text_padding": text_padding, "audio_padding": audio_padding}.items():
            if padding not in ("longest", "max_length"):
                raise ValueError(f"{name}={padding!r} is not valid; it must be longest or max_length")
        if jpeg_draft < 0:
            raise ValueError(f"jpeg_draft={jpeg_draft} is not valid; it must be 0 (off) or more")
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} is not valid; it must be 1 or more")
        if max_text_length is not None:
            check_text_length("max_text_length", max_text_length, tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        # What is filled by use is left out, so that a processor is the same by its pickle before and after:
        # `datasets` finds what `map` computed by a hash of that.
        return self.__dict__ | {"_pipelines": {}}

    @classmethod
    def from_encoders(
        cls,
        text: str | None = None,
        image: str | None = None,
        audio: str | None = None,
        video: str | None = None,
        whole_image: bool = False,
        encoder_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> "CUEProcessor":
        """The processor of towers by Hub name or local folder, as in `CUEModel.from_encoders`.

        `whole_image` squashes the whole image to the tower's size, in place of its habit of cropping the middle.
        `encoder_kwargs` may be those that `CUEModel.from_encoders` got: what says where files are (revision, token,
        cache_dir and the like) is heeded. `settings` are the keyword arguments of the class; those of texts, and
        `num_frames`, default to the habits of the towers.

        Raises:
            ValueError: no modality given, an encoder that has no processor of its kind, or longer texts than the text
                tower has places for.
        """
        names = {
            "tokenizer": text,
            "image_processor": image or (None if video == "image" else video),
            "feature_extractor": audio,
            "frame_image_processor": video if image is not None and video not in (None, "image", image) else None,
        }
        if not any(names.values()):
            raise ValueError("no modality given: name at least one encoder, e.g. text='intfloat/e5-base-v2'")
        options = {key: value for key, value in (encoder_kwargs or {}).items() if key in HUB_OPTIONS}
        parts = {part: load_part(part, name, **options) for part, name in names.items() if name is not None}
        if whole_image:
            parts |= {part: without_crop(one) for part, one in parts.items() if part.endswith("image_processor")}
        habits: dict[str, Any] = {}
        if text is not None:
            habits = text_habits(str(text), parts["tokenizer"], settings.get("max_text_length"), **options)
        if video not in (None, "image", image):
            habits |= video_habits(str(video), **options)
        return cls(**parts, **habits | settings)

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        audio: Any = None,
        videos: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        do_normalize: bool = True,
        **text_options: Any,
    ) -> BatchFeature:
        """One item or a list of each modality; paths, bytes, open binary files, arrays and `datasets` values.

        Args:
            text: str or list of str. images, audio, videos: one value or a list (tuple, column, generator) of values.
                An array is one value, or a batch where it has one axis more than an image (4) or a video (5); a list
                of images or of image arrays is one video; a list of numbers, or (array, Hz), is one sound.
            sampling_rate: of audio given as bare arrays, Hz.
            do_normalize: False leaves pixels as uint8, a quarter of the memory, where the image processor's settings
                can be told in one (see `fast_images`); `normalize` does the rest on their device.
            text_options: `padding`, `truncation`, `max_length` of the tokenizer; by default texts are padded to the
                longest and cut at `max_text_length`, or at a smaller `max_length`. `allow_empty=True` takes texts
                without a word too.

        Texts and sounds that are longer than their tower takes (30 s for Whisper) are cut.

        Returns:
            `input_ids`, `attention_mask` (N, L); `pixel_values` (N, 3, H, W); `pixel_values_videos` (N, num_frames, 3,
            H, W); `input_features` as the tower reads it: (N, mels, frames) for Whisper, (N, samples) for wav2vec 2.0
            and HuBERT, with `input_features_mask` (N, frames or samples), 1 for real ones; (N, frames, mels) for AST
            and (N, views, frames, mels) for CLAP, without.

        Raises:
            ValueError: no modality, one that this processor lacks, an empty list or text, a `max_length` over the
                processor's. MediaError: unreadable media. TypeError: an unknown option, or a `text` that is neither
                str nor a list of them.
        """
        if unknown := sorted(text_options.keys() - set(TEXT_OPTIONS)):
            raise TypeError(
                f"CUEProcessor takes no {', '.join(unknown)}; it takes text, images, audio, videos, sampling_rate, "
                f"return_tensors, do_normalize, and of the tokenizer's options {', '.join(TEXT_OPTIONS)}"
            )
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r} is not valid; CUE is a torch model: use 'pt'")
        text, images, audio, videos = (without_columns(value) for value in (text, images, audio, videos))
        given = {"text": text, "images": images, "audio": audio, "videos": videos}
        if all(value is None for value in given.values()):
            raise ValueError(f"no modality given: pass at least one of {', '.join(self._accepted())}")
        for name, value in given.items():
            if value is not None and name not in self._accepted():
                raise ValueError(f"this processor takes no {name}: it has {', '.join(self._accepted())}")
            several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
            if (several and not len(value)) or 0 in getattr(value, "shape", ())[:1]:
                raise ValueError(f"{name} is an empty list: leave it out, or give at least one")
        features: dict[str, Any] = {}
        if text is not None:
            features |= self._text(text, text_options)
        if images is not None:
            features["pixel_values"] = self.pipeline.batch(listed(images))
        if audio is not None:
            features |= self._audio(audio, sampling_rate)
        if videos is not None:
            clips = [load_video(clip, self.num_frames) for clip in listed(videos, frames=True)]
            pixels = self.frame_pipeline.batch([frame for clip in clips for frame in clip])
            features["pixel_values_videos"] = pixels.unflatten(0, (len(clips), self.num_frames))
        return BatchFeature(self.normalize(features) if do_normalize else features)

    def normalize(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Model inputs with pixels as their towers want them, float32, of those made with `do_normalize=False`.

        Pixels are normalised on the device that they are on; those that are float already, and all other inputs, come
        back as they are.
        """
        features = dict(features)
        if "pixel_values" in features:
            features["pixel_values"] = self.pipeline.normalise(features["pixel_values"])
        if "pixel_values_videos" in features:
            features["pixel_values_videos"] = self.frame_pipeline.normalise(features["pixel_values_videos"])
        return features

    @property
    def pipeline(self) -> ImagePipeline:
        """How images are prepared. The image processor and the settings may be changed at any time."""
        return self._pipeline("image", self.image_processor)

    @property
    def frame_pipeline(self) -> ImagePipeline:
        """How frames of video are prepared."""
        own = self.frame_image_processor
        return self.pipeline if own is None else self._pipeline("frame", own)

    def _pipeline(self, kind: str, image_processor: Any) -> ImagePipeline:
        given = (image_processor, self.fast_images, self.jpeg_draft)
        if kind not in self._pipelines or not self._pipelines[kind].is_of(*given):
            self._pipelines[kind] = ImagePipeline(*given)
        return self._pipelines[kind]

    def _accepted(self) -> list[str]:
        arguments = {"text": self.tokenizer, "images": self.image_processor, "audio": self.feature_extractor}
        accepted = [name for name, part in arguments.items() if part is not None]
        return [*accepted, "videos"] if self.image_processor is not None else accepted

    @property
    def text_length(self) -> int:
        """The length in tokens at which texts are cut."""
        return self.max_text_length or longest_text(self.tokenizer)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text as a call gives them, without padding: what texts can be sorted by before one.

        Raises:
            ValueError: an empty text.
        """
        return self._tokens(listed_texts(texts), {"return_attention_mask": False})["input_ids"]

    def _text(self, text: Any, options: dict[str, Any]) -> dict[str, Any]:
        # SigLIP's tokenizers name no mask among their outputs.
        needed = {"padding": self.text_padding, "return_attention_mask": True, "return_tensors": "pt"}
        texts = listed_texts(text)
        if not texts:
            raise ValueError("text is empty: leave it out, or give at least one")
        encoded = self._tokens(texts, needed | options)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _tokens(self, texts: list[Any], options: dict[str, Any]) -> Any:
        options = dict(options)
        allow_empty = options.pop("allow_empty", False)
        for number, one in enumerate(texts):
            check_text(number, one, allow_empty)
        options["max_length"] = length_of_call(options.get("max_length"), self.text_length, self.tokenizer)
        options = {"truncation": True} | options
        return self.tokenizer([self.text_prefix + one for one in texts], **options)

    def _audio(self, audio: Any, sampling_rate: int | None) -> dict[str, Any]:
        rate = self.feature_extractor.sampling_rate
        clips = [load_audio(clip, rate, sampling_rate) for clip in listed(audio)]
        values, mask = extract(self.feature_extractor, clips, self.audio_padding)
        return {"input_features": values} | ({} if mask is None else {"input_features_mask": mask})
