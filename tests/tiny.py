"""Tiny encoders of every family: real config, model and processor classes with few weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ("a the man woman dog cat red blue green circle square runs jumps on in of big small left right").split()
LETTERS = [chr(c) for c in range(97, 123)]


def numbered(tokens):
    """Each token by its place, where it comes up first: "a" is a word and a letter."""
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def bert_tokenizer(kind: str = "bert"):
    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "mpnet": ["<pad>", "<unk>", "<s>", "</s>", "<mask>"],
        "modernbert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    }
    pad, unk, cls, sep, mask = special[kind]
    vocab = numbered([*special[kind], *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS), ".", ","])
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


def roberta_tokenizer(kind=hf.RobertaTokenizer):
    """Bytes and no merges; the padding token is number 1, as in every RoBERTa."""
    if kind is hf.XLMRobertaTokenizer:
        words = [(f"\u2581{word}", -1.0) for word in WORDS] + [(letter, -2.0) for letter in ("\u2581", *LETTERS)]
        return kind(vocab=[(t, 0.0) for t in ("<s>", "<pad>", "</s>", "<unk>")] + words, model_max_length=32)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"])}
    return kind(vocab=vocab, merges=[], model_max_length=32)


def siglip_tokenizer():
    """One that ends texts, pads them with a token which the configuration does not name, and gives no mask."""
    vocab = numbered(["<pad>", "</s>", "<unk>", *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS)])
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right",
        model_input_names=["input_ids"],
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


def _siglip():
    text = LAYERS | {
        "vocab_size": 80, "max_position_embeddings": 24, "projection_size": 12,
        "bos_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip
    config = hf.SiglipConfig(text_config=text, vision_config=LAYERS | {"image_size": 32, "patch_size": 8})
    return hf.SiglipModel(config), hf.SiglipProcessor(hf.SiglipImageProcessor(**IMAGES), siglip_tokenizer())


def _wav2vec2(config_class, model_class, norm):
    config = config_class(
        **LAYERS, vocab_size=10, conv_dim=[8, 8], conv_kernel=[10, 3], conv_stride=[5, 2], num_feat_extract_layers=2,
        feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return model_class(config), hf.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")


def _ast():
    config = hf.ASTConfig(**LAYERS, patch_size=8, frequency_stride=8, time_stride=8, max_length=48, num_mel_bins=16)
    return hf.ASTForAudioClassification(config), hf.ASTFeatureExtractor(num_mel_bins=16, max_length=48)


def _clap(fused):
    text = LAYERS | {"vocab_size": 60, "max_position_embeddings": 40}
    audio = {
        "patch_size": 8, "patch_stride": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16,
        "patch_embeds_hidden_size": 8, "num_hidden_layers": 2, "enable_fusion": fused, "aff_block_r": 2,
    }  # fmt: skip
    config = hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    extractor = hf.ClapFeatureExtractor(max_length_s=1, truncation="fusion" if fused else "rand_trunc")
    return hf.ClapModel(config), hf.ClapProcessor(extractor, roberta_tokenizer())


def _videomae():
    config = hf.VideoMAEConfig(
        **LAYERS, image_size=32, patch_size=8, num_frames=4, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return hf.VideoMAEForPreTraining(config), hf.VideoMAEImageProcessor(**settings)


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
        encoder_layerdrop=0.9,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config), hf.WhisperFeatureExtractor(feature_size=20)


def _bert(config_class, model_class, kind, **extra):
    tokenizer = bert_tokenizer(kind) if isinstance(kind, str) else roberta_tokenizer(kind)
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
    "roberta": Tiny(
        "text", lambda: _bert(hf.RobertaConfig, hf.RobertaForMaskedLM, hf.RobertaTokenizer), "RobertaModel"
    ),
    "xlm-roberta": Tiny(
        "text", lambda: _bert(hf.XLMRobertaConfig, hf.XLMRobertaForMaskedLM, hf.XLMRobertaTokenizer), "XLMRobertaModel"
    ),
    # A window of 4 tokens: a padded place of a longer text sees padding only.
    "modernbert": Tiny(
        "text",
        lambda: _bert(
            hf.ModernBertConfig,
            hf.ModernBertForMaskedLM,
            "modernbert",
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
            local_attention=4,
        ),
        "ModernBertModel",
    ),
    "siglip_text": Tiny("text", _siglip, "SiglipTextModel"),
    "clip": Tiny("image", _clip, "CLIPVisionModel"),
    "clip_text": Tiny("text", _clip, "CLIPTextModel"),
    "siglip": Tiny("image", _siglip, "SiglipVisionModel"),
    "dinov2": Tiny(
        "image",
        lambda: (
            # Trained at another size than its processor gives it, as the real one.
            hf.Dinov2Model(hf.Dinov2Config(**LAYERS, image_size=48, patch_size=8)),
            hf.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        ),
        "Dinov2Model",
    ),
    "vit": Tiny(
        "image",
        lambda: (hf.ViTModel(hf.ViTConfig(**LAYERS, image_size=32, patch_size=8)), hf.ViTImageProcessor(**IMAGES)),
        "ViTModel",
    ),
    "vit_mae": Tiny(
        "image",
        lambda: (
            hf.ViTMAEModel(hf.ViTMAEConfig(**LAYERS, image_size=32, patch_size=8)),
            hf.ViTImageProcessor(**IMAGES),
        ),
        "ViTMAEModel",
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
    "wav2vec2": Tiny("audio", lambda: _wav2vec2(hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC, "group"), "Wav2Vec2Model"),
    "wav2vec2_layer": Tiny("audio", lambda: _wav2vec2(hf.Wav2Vec2Config, hf.Wav2Vec2Model, "layer"), "Wav2Vec2Model"),
    "hubert": Tiny("audio", lambda: _wav2vec2(hf.HubertConfig, hf.HubertModel, "group"), "HubertModel"),
    "hubert_layer": Tiny("audio", lambda: _wav2vec2(hf.HubertConfig, hf.HubertForCTC, "layer"), "HubertModel"),
    "ast": Tiny("audio", _ast, "ASTModel"),
    "clap": Tiny("audio", lambda: _clap(False), "ClapAudioModel"),
    "clap_fused": Tiny("audio", lambda: _clap(True), "ClapAudioModel"),
    "videomae": Tiny("video", _videomae, "VideoMAEModel"),
}


def make_encoder(family: str, folder: Path) -> Path:
    """Saves a tiny pretrained encoder and its processor in `folder`, as a Hub repo has them."""
    torch.manual_seed(sum(map(ord, family)))
    model, processor = TOWERS[family].make()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if TOWERS[family].modality == "text":
        ids = torch.randint(5, 30, (2, 7), generator=generator)
        mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
        if family == "clip_text":  # CLIP reads its pooled state at the end-of-text token
            ids[0, -1] = ids[1, 3:] = 53
        if family in ("roberta", "xlm-roberta", "siglip_text"):  # which count places, or read them, by these
            ids[1, 4:] = 1
        return {"input_ids": ids, "attention_mask": mask}
    if TOWERS[family].modality == "image":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if TOWERS[family].modality == "video":
        return {"pixel_values_videos": torch.randn(2, 4, 3, 32, 32, generator=generator)}
    if family == "ast":
        return {"input_features": torch.randn(2, 48, 16, generator=generator)}
    if family.startswith("clap"):
        views = torch.randn(2, 4 if family == "clap_fused" else 1, 101, 64, generator=generator)
        views[0] = views[0, :1]  # a clip that needs no fusion
        return {"input_features": views}
    if family != "whisper":
        mask = torch.tensor([[1] * 400, [1] * 230 + [0] * 170])
        return {"input_features": torch.randn(2, 400, generator=generator) * mask, "input_features_mask": mask}
    mask = torch.tensor([[1] * 101, [1] * 60 + [0] * 41])
    return {"input_features": torch.randn(2, 20, 101, generator=generator), "input_features_mask": mask}
