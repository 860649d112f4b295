"""Tiny encoders of every family: real config, model and processor classes with few weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ("a the man woman dog cat red blue green circle square runs jumps on in of big small left right").split()
LETTERS = [chr(c) for c in range(97, 123)]


def bert_tokenizer(kind: str = "bert"):
    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "mpnet": ["<pad>", "<unk>", "<s>", "</s>", "<mask>"],
    }
    pad, unk, cls, sep, mask = special[kind]
    vocab = {t: i for i, t in enumerate([*special[kind], *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS), ".", ","])}
    core = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep, mask_token=mask,
        model_max_length=32,
    )  # fmt: skip


def clip_tokenizer():
    letters = [*LETTERS, *(f"{c}</w>" for c in LETTERS)]
    vocab = {t: i for i, t in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    core = Tokenizer(models.BPE(vocab, [], unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", vocab["<|startoftext|>"]), ("<|endoftext|>", vocab["<|endoftext|>"])],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        unk_token="<|endoftext|>", model_max_length=24,
    )  # fmt: skip


LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"size": {"height": 32, "width": 32}}


def _clip():
    text = LAYERS | {
        "vocab_size": 54,
        "max_position_embeddings": 24,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    vision = LAYERS | {"image_size": 32, "patch_size": 8}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    processor = hf.CLIPProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), clip_tokenizer()
    )
    return hf.CLIPModel(config), processor


def _timm():
    config = hf.TimmWrapperConfig(architecture="test_convnext", num_labels=5)
    model = hf.TimmWrapperForImageClassification(config)
    pretrained = {"input_size": [3, 32, 32], "num_features": model.timm_model.num_features}
    model.config.pretrained_cfg = {**model.timm_model.pretrained_cfg, **pretrained}
    return model, hf.TimmWrapperImageProcessor(
        pretrained_cfg=model.config.pretrained_cfg, architecture="test_convnext"
    )


def _whisper():
    config = hf.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=20, max_source_positions=1500,
        pad_token_id=53, bos_token_id=52, eos_token_id=53, decoder_start_token_id=52, begin_suppress_tokens=None,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config), hf.WhisperFeatureExtractor(feature_size=20)


def _bert(config_class, model_class, kind, **extra):
    tokenizer = bert_tokenizer(kind)
    config = config_class(**LAYERS, vocab_size=len(tokenizer), max_position_embeddings=40, **extra)
    return model_class(config), tokenizer


@dataclass(frozen=True)
class Tiny:
    modality: str
    make: object
    bare: str  # the class whose output a CUE tower must reproduce


TOWERS = {
    "bert": Tiny("text", lambda: _bert(hf.BertConfig, hf.BertModel, "bert"), "BertModel"),
    "mpnet": Tiny("text", lambda: _bert(hf.MPNetConfig, hf.MPNetModel, "mpnet", pad_token_id=0), "MPNetModel"),
    "clip": Tiny("image", _clip, "CLIPVisionModel"),
    "clip_text": Tiny("text", _clip, "CLIPTextModel"),
    "vit": Tiny(
        "image",
        lambda: (hf.ViTModel(hf.ViTConfig(**LAYERS, image_size=32, patch_size=8)), hf.ViTImageProcessor(**IMAGES)),
        "ViTModel",
    ),
    "resnet": Tiny(
        "image",
        lambda: (
            hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
            hf.ViTImageProcessor(**IMAGES),
        ),
        "ResNetModel",
    ),
    "timm": Tiny("image", _timm, "TimmWrapperModel"),
    "whisper": Tiny("audio", _whisper, "WhisperModel"),
}


def make_encoder(family: str, folder: Path) -> Path:
    """Saves a tiny pretrained encoder and its processor in `folder`, as a Hub repo has them."""
    torch.manual_seed(sum(map(ord, family)))
    model, processor = TOWERS[family].make()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
