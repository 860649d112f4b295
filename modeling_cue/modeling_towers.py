"""The towers of a CUE: what they say, which of them are frozen, and how they are found."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn, uint8
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .encoders import run_tower, whole_clips
from .encoders_run import TEXT_CHUNKS, average_views, pool
from .modeling_base import CUEPreTrainedModel


class CUETowers(CUEPreTrainedModel):
    """The part of a CUE that knows its towers; [`CUEModel`] puts heads and composition on them."""

    _poolers: dict[str, str]  # of each modality
    text_chunks = TEXT_CHUNKS

    def tower_features(
        self, modality: str, values: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the tower hands to the trainable part of `modality`: all that a cache of a frozen tower must hold.

        Returns:
            (N, H) where the pooler has no weights; else tokens (N, T, H) and their mask (N, T) bool or None.
        """
        features, seen = self.view_features(modality, values, mask)
        if modality == "image" and self.config.average_mirror and not self.training:
            return average_views(features, self.view_features(modality, values.flip(-1), mask)[0], seen)
        return features, seen

    def view_features(self, modality: str, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`tower_features` of the input as it is, without its mirror image."""
        self._require(modality)
        if values.dtype == uint8:
            raise ValueError(
                f"{modality} input has pixels from 0 to 255: normalise it by CUEProcessor.normalize first"
            )
        tower, pooler = getattr(self, self.tower_name(modality)), self._poolers[modality]
        frames = 0
        if modality == "video":
            if values.ndim != 5 or values.shape[1] != self.config.num_frames:
                raise ValueError(
                    f"video input must have the shape (N, {self.config.num_frames}, 3, H, W); got "
                    f"{tuple(values.shape)}: sample the clip with CUEProcessor"
                )
            if not whole_clips(tower.config):
                frames, values = values.shape[1], values.flatten(0, 1)
        output = run_tower(
            tower, modality, values, mask, crop_audio=self.config.crop_audio, text_chunks=self.text_chunks
        )
        if pooler == "attention":
            tokens = output.tokens.unflatten(0, (-1, frames)).flatten(1, 2) if frames else output.tokens
            return tokens, output.mask
        pooled = pool(output, pooler)
        return (pooled.unflatten(0, (-1, frames)) if frames else pooled), None

    def freeze(self, modalities: Iterable[str]) -> None:
        """Freezes the towers of these modalities: no gradient, and eval mode (no dropout) from now on."""
        for modality in [modalities] if isinstance(modalities, str) else modalities:
            self._require(modality)
            getattr(self, self.tower_name(modality)).requires_grad_(False)
        self.train(self.training)

    @property
    def towers(self) -> dict[str, PreTrainedModel]:
        """The towers by the modality they belong to; a tower that two modalities share stands once."""
        return {m: getattr(self, f"{m}_tower") for m in self.config.modalities if self.tower_name(m) == f"{m}_tower"}

    @property
    def frozen_modalities(self) -> tuple[str, ...]:
        """The modalities whose towers have no trainable weight."""
        towers = {m: getattr(self, self.tower_name(m)) for m in self.config.modalities}
        return tuple(m for m, t in towers.items() if not any(p.requires_grad for p in t.parameters()))

    def train(self, mode: bool = True) -> Any:
        still = {self.tower_name(modality) for modality in self.frozen_modalities} if mode else set()
        if self.training != mode or not still:
            super().train(mode)
        else:
            # Trainers ask at every step: frozen towers, of hundreds of modules, are not gone through for that.
            for name, child in self.named_children():
                if name not in still:
                    child.train()
        for name in still:
            if getattr(self, name).training:
                getattr(self, name).eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the text tower.

        Raises:
            NotImplementedError: this model has no text modality. `transformers` and peft then ask the towers.
        """
        if "text" not in self._poolers:
            raise NotImplementedError(f"this CUE has no text modality; it has {', '.join(self._poolers)}")
        return self.text_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings of the text tower."""
        self._require("text")
        self.text_tower.set_input_embeddings(value)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, every_n_layers: int = 1
    ) -> None:
        # Each tower knows its own way: a timm tower has no layer that the outer model could find.
        for tower in self.towers.values():
            if tower.supports_gradient_checkpointing:
                tower._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers=every_n_layers)

    def tower_name(self, modality: str) -> str:
        """The attribute that holds the tower of a modality."""
        shared = modality == "video" and self.config.video_uses_image_tower
        return "image_tower" if shared else f"{modality}_tower"

    def pooler_name(self, modality: str) -> str:
        """The pooler of a modality: pooler_output, cls, mean or attention."""
        self._require(modality)
        return self._poolers[modality]

    def _require(self, modality: str) -> None:
        if modality not in self._poolers:
            raise ValueError(f"this CUE has no {modality} modality; it has {', '.join(self._poolers)}")
