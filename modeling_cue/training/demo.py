"""The demo's model: tiny towers of real families, trained from scratch on scenes. Nothing is downloaded."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ViTImageProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from configuration_cue import CUEConfig

from ..cones import Cone
from ..modeling_cue import CUEModel
from ..processing_cue import CUEProcessor
from .collator import CUECollator
from .metrics_retrieval import RECALL_AT, ranks_of_positives
from .scenes_queries import KINDS, Query, composition_queries, reader_ceiling
from .scenes_render import PIXELS, SAMPLING_RATE

NUM_FRAMES = 2  # of the six that a clip has: enough to see what drifts, at a third of the cost
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def demo_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A BERT-style tokenizer whose vocabulary is the words of `texts`."""
    words = sorted({word for text in texts for word in text.lower().replace(",", " ,").replace(".", " .").split()})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    )  # fmt: skip


def build_demo(texts: Iterable[str], **config_fields: Any) -> tuple[CUEModel, CUEProcessor]:
    """A CUE of four modalities with fresh tiny towers: BERT, ResNet (image and video), Whisper."""
    tokenizer = demo_tokenizer(texts)
    width = 64
    processor = CUEProcessor(
        tokenizer=tokenizer,
        image_processor=ViTImageProcessor(size={"height": PIXELS, "width": PIXELS}),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=40, sampling_rate=SAMPLING_RATE, chunk_length=10, hop_length=320
        ),
        num_frames=NUM_FRAMES,
    )
    config = CUEConfig(
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        image_config=ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 96, 192], depths=[1, 1, 1], layer_type="basic",
        ),
        audio_config=WhisperConfig(
            d_model=128, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=256, num_mel_bins=40,
            max_source_positions=500, dropout=0.0, attention_dropout=0.0,
        ),
        video_uses_image_tower=True,
        num_frames=NUM_FRAMES,
        composition_dim=192,
        radius_init={"image": 0.2, "audio": 0.2, "video": 0.2},
        **config_fields,
    )  # fmt: skip
    return CUEModel(config), processor


@torch.no_grad()
def composition_scores(model: CUEModel, processor: CUEProcessor, rows: Any, seed: int = 0) -> dict[str, float]:
    """How well compounds of a pair never seen together find their pictures, beside the mean of the parts' axes.

    Returns:
        `unseen_{text,image,audio}_R@{1,5,10}` and `unseen_mean_{...}_R@{...}`, fractions of the queries whose kind is
        the modality of the part that is no phrase; a query is found if any row that it is true of is among the first.
    """
    was_training = model.training
    model.eval()
    images = embed_media(model, processor, "image", [row["image"] for row in rows])
    found: dict[str, float] = {}
    queries = composition_queries(rows, seed)
    for kind in KINDS:
        chosen = [query for query in queries if query.kind == kind]
        if not chosen or (kind != "text" and kind not in model.config.modalities):
            continue
        cones, mask = embed_parts(model, processor, chosen)
        compound = model.compose(cones, mask)
        hit = torch.zeros(len(chosen), len(rows), dtype=torch.bool, device=images.axis.device)
        for number, query in enumerate(chosen):
            hit[number, list(query.hits)] = True
        mean = torch.nn.functional.normalize((cones.axis * mask[..., None]).sum(1), dim=-1)
        for name, axis in (("unseen", compound.axis), ("unseen_mean", mean)):
            first = ranks_of_positives(axis @ images.axis.T, hit, ~hit)[:, 0]
            found |= {f"{name}_{kind}_R@{k}": (first <= k).double().mean().item() for k in RECALL_AT}
        found[f"unseen_{kind}_queries"] = float(len(chosen))
    model.train(was_training)
    return found


def embed_media(model: CUEModel, processor: CUEProcessor, modality: str, values: Sequence[Any]) -> Cone:
    """Cones (N,) of texts or undecoded media, in batches."""
    collator = CUECollator(processor, model.config.modalities)
    get = getattr(model, f"get_{modality}_cones")
    cones = []
    for start in range(0, len(values), 64):
        batch = values[start : start + 64]
        loaded = list(batch) if modality == "text" else [collator.load_medium(modality, value) for value in batch]
        cones.append(get(**{k: v.to(model.device) for k, v in collator.inputs({modality: loaded}).items()}))
    return Cone.cat(cones)


def embed_parts(model: CUEModel, processor: CUEProcessor, queries: Sequence[Query]) -> tuple[Cone, torch.Tensor]:
    """The parts of queries as cones (Q, K) and a mask (Q, K) bool."""
    flat = [part for query in queries for part in query.parts]
    axis = torch.zeros(len(flat), model.config.projection_dim, device=model.device)
    radius = torch.zeros(len(flat), device=model.device)
    for modality in {part.modality for part in flat}:
        places = [i for i, part in enumerate(flat) if part.modality == modality]
        cones = embed_media(model, processor, modality, [flat[i].value for i in places])
        axis[places], radius[places] = cones.axis.float(), cones.radius.float()
    sizes = [len(query.parts) for query in queries]
    index = torch.full((len(queries), max(sizes)), -1)
    place = 0
    for q, size in enumerate(sizes):
        index[q, :size] = torch.arange(place, place + size)
        place += size
    return Cone(axis, radius)[index.clamp(min=0)], (index >= 0).to(model.device)


def demo_report(model: CUEModel, processor: CUEProcessor, rows: Any) -> dict[str, float]:
    """The demo's own figures on its test scenes: unseen compositions, and the ceiling of a perfect reader."""
    ceiling = {f"ceiling_{key}": value for key, value in reader_ceiling(rows).items()}
    return composition_scores(model, processor, rows) | ceiling
