"""CUEProcessor: keys, shapes, prefixes, missing parts, and what it refuses."""

import copy
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from datasets.fingerprint import Hasher
from PIL import Image
from tiny import TOWERS
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    WhisperFeatureExtractor,
)

from modeling_cue import CUEModel, CUEProcessor, processing_parts
from modeling_cue.media_files import MediaError
from modeling_cue.processing_parts import PREFIX_HABITS

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
WAVE = np.random.default_rng(0).normal(size=8000).astype(np.float32) * 0.1


def test_every_modality_at_once(processor):
    inputs = processor(text="a dog", images=IMAGE, audio=WAVE, videos=[IMAGE] * 4, sampling_rate=16000)
    assert {k: tuple(v.shape[:1]) for k, v in inputs.items()} == dict.fromkeys(inputs, (1,))
    assert set(inputs) == set(CUEProcessor.model_input_names)
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 32, 32)
    assert inputs["input_features"].shape == (1, 20, 50)
    assert inputs["input_features_mask"].shape == (1, 50)


def test_lists_are_batches_and_masks_tell_padding(processor):
    inputs = processor(
        text=["a dog", "the red cat runs on a circle"], images=[IMAGE] * 2, audio=[WAVE, WAVE[:4000]],
        videos=[[IMAGE] * 4, [IMAGE]], sampling_rate=16000,
    )  # fmt: skip
    assert inputs["attention_mask"].sum(1).tolist()[0] < inputs["attention_mask"].shape[1]
    assert inputs["input_features_mask"].sum(1).tolist() == [50, 25]
    assert len(inputs["pixel_values_videos"]) == 2
    batch = processor(images=torch.from_numpy(np.stack([IMAGE] * 3)).permute(0, 3, 1, 2))
    assert len(batch["pixel_values"]) == 3


def test_bytes_are_normalised_later_to_the_same_pixels(model, processor):
    given = {"text": "a dog", "images": [IMAGE, IMAGE[:20]], "videos": [[IMAGE] * 4, [IMAGE]]}
    whole, later = processor(**given), processor(**given, do_normalize=False)
    for name in ("pixel_values", "pixel_values_videos"):
        assert later[name].dtype == torch.uint8
        assert later[name].shape == whole[name].shape
    normalized = processor.normalize(later)
    assert normalized.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(normalized[name], value)
        assert normalized[name].stride() == value.stride()
    assert later["pixel_values"].dtype == torch.uint8  # what was given is left as it is
    with pytest.raises(ValueError, match=r"image input has pixels from 0 to 255: .* by CUEProcessor\.normalize"):
        model.get_image_cones(pixel_values=later["pixel_values"])
    again = processor.normalize(normalized)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_what_cannot_be_told_in_one_is_never_bytes(processor):
    slow = copy.copy(processor)
    slow.fast_images = False
    whole, later = slow(images=IMAGE), slow(images=IMAGE, do_normalize=False)
    assert torch.equal(later["pixel_values"], whole["pixel_values"])
    assert torch.equal(slow.normalize(later)["pixel_values"], whole["pixel_values"])


def test_padding_of_audio_to_30_s(names):
    padded = CUEProcessor.from_encoders(audio=names["audio"], audio_padding="max_length")
    inputs = padded(audio=WAVE, sampling_rate=16000)
    assert inputs["input_features"].shape == (1, 20, 3000)
    assert inputs["input_features_mask"].sum() == 50


def test_text_is_cut_to_the_longest_and_prefixed(names):
    plain, short = (CUEProcessor.from_encoders(text=names["text"], **s) for s in ({}, {"max_text_length": 6}))
    prefixed = CUEProcessor.from_encoders(text=names["text"], text_prefix="the ")
    assert torch.equal(prefixed(text="dog")["input_ids"], plain(text="the dog")["input_ids"])
    assert short(text="the dog runs on a big red circle")["input_ids"].shape == (1, 6)
    assert plain(text="a " * 100)["input_ids"].shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("intfloat/e5-base-v2", "query: "), ("intfloat/multilingual-e5-small", "query: "),
        ("/towers/e5-base-v2", "query: "), ("intfloat/e5-mistral-7b-instruct", ""),
        ("intfloat/multilingual-e5-large-instruct", ""), ("bert-base", ""), ("/runs/e5-trials/bert-base", ""),
        ("/towers/e5-small/", "query: "), ("me/my-e5", "query: "), ("me/type5-base", ""),
    ],
)  # fmt: skip
def test_habits_of_prefixes(name, prefix):
    assert next((p for pattern, p in PREFIX_HABITS if pattern.search(name)), "") == prefix


def test_parts_that_are_missing_stay_missing(names, tmp_path):
    for given in ({"text": names["text"]}, {"image": names["image"]}, {"audio": names["audio"]}):
        processor = CUEProcessor.from_encoders(**given, num_frames=5)
        folder = tmp_path / next(iter(given))
        processor.save_pretrained(folder)
        again = CUEProcessor.from_pretrained(folder)
        assert again.get_attributes() == processor.get_attributes()
        assert len(again.get_attributes()) == 1
        assert again.num_frames == 5


def test_timm_processors_come_back(encoders, tmp_path):
    processor = CUEProcessor.from_encoders(image=str(encoders["timm"]))
    processor.save_pretrained(tmp_path)
    again = CUEProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(images=IMAGE)["pixel_values"], processor(images=IMAGE)["pixel_values"])


@pytest.mark.parametrize("family", ["timm", "clip", "vit"])
def test_the_whole_image(encoders, family):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, :20] = 255  # a stripe that cropping the middle cuts off
    cropped, whole = (CUEProcessor.from_encoders(image=str(encoders[family]), whole_image=w) for w in (False, True))
    assert whole(images=wide)["pixel_values"].shape == cropped(images=wide)["pixel_values"].shape
    spread = whole(images=wide)["pixel_values"].max() - whole(images=wide)["pixel_values"].min()
    assert spread > 1


def test_refusals(processor, names):
    with pytest.raises(ValueError, match="no modality given: pass at least one of text, images, audio, videos"):
        processor()
    with pytest.raises(ValueError, match="takes no images: it has text"):
        CUEProcessor.from_encoders(text=names["text"])(images=IMAGE)
    for empty in ("", "  ", ["a dog", ""], [None]):
        with pytest.raises(ValueError, match="is empty or no text"):
            processor(text=empty)
    with pytest.raises(ValueError, match="use 'pt'"):
        processor(text="a", return_tensors="np")
    with pytest.raises(ValueError, match="audio_padding='none' is not valid"):
        CUEProcessor(audio_padding="none")
    with pytest.raises(ValueError, match="num_frames=0 is not valid"):
        CUEProcessor(num_frames=0)
    with pytest.raises(ValueError, match="no modality given"):
        CUEProcessor.from_encoders()
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        CUEProcessor.from_encoders(text="nobody/nothing")


def test_the_auto_class_gives_it_back_whole(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is CUEProcessor
    one, two = (
        p(text="a dog", images=IMAGE, audio=WAVE, videos=[IMAGE], sampling_rate=16000) for p in (processor, again)
    )
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert again.batch_decode(again(text="a dog")["input_ids"], skip_special_tokens=True) == ["a dog"]


def test_a_habit_is_a_default(names, tmp_path):
    folder = tmp_path / "e5-tiny"
    CUEProcessor.from_encoders(text=names["text"]).tokenizer.save_pretrained(folder)
    assert CUEProcessor.from_encoders(text=str(folder)).text_prefix == "query: "
    assert CUEProcessor.from_encoders(text=str(folder), text_prefix="").text_prefix == ""


def test_options_of_the_tokenizer_reach_it(processor):
    assert processor(text="a dog", padding="max_length", max_length=9)["input_ids"].shape == (1, 9)
    assert processor(text=["a dog", "the red cat"], padding=True, truncation=True)["input_ids"].shape[0] == 2
    assert set(processor(text="a dog")) == {"input_ids", "attention_mask"}  # no token_type_ids
    with pytest.raises(TypeError, match="takes no num_frame; it takes text, images, .*, max_length"):
        processor(text="a dog", num_frame=3)
    with pytest.raises(TypeError, match="num_frame"):
        CUEProcessor(num_frame=3)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "clip"])
def test_texts_are_cut_where_the_places_of_their_tower_end(encoders, family, tmp_path):
    shutil.copytree(encoders[family], tmp_path / "text")
    path = tmp_path / "text" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": int(1e30)}))
    names = {"text": str(tmp_path / "text")}
    processor = CUEProcessor.from_encoders(**names)
    ids = processor(text="a " * 900)["input_ids"]
    model = CUEModel.from_encoders(**names, projection_dim=8).eval()
    assert torch.isfinite(model.get_text_cones(input_ids=ids).radius).all()
    longest = ids.shape[1]
    with pytest.raises(ValueError, match=f"max_text_length={longest + 1} is not valid: the text tower has places for"):
        CUEProcessor.from_encoders(**names, max_text_length=longest + 1)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model.get_text_cones(input_ids=torch.cat([ids, ids[:, 1:2]], 1))


def test_a_call_asks_for_no_more_tokens_than_there_are_places(names):
    processor = CUEProcessor.from_encoders(text=names["text"], max_text_length=20)
    assert processor(text="a " * 90, max_length=7)["input_ids"].shape == (1, 7)
    assert processor(text="a " * 90, max_length=None)["input_ids"].shape == (1, 20)
    with pytest.raises(ValueError, match="max_length=100 is not valid: this processor cuts texts at 20 tokens"):
        processor(text="a " * 90, max_length=100)
    with pytest.raises(ValueError, match="max_length=1 is not valid; it must be 3 or more"):
        processor(text="a " * 90, max_length=1)


def test_where_nothing_states_a_length_512_tokens_are_taken(names):
    processor = CUEProcessor(CUEProcessor.from_encoders(text=names["text"]).tokenizer)
    processor.tokenizer.model_max_length = int(1e30)
    assert processor(text="a " * 900)["input_ids"].shape == (1, 512)
    with pytest.raises(ValueError, match="max_text_length=2 is not valid; it must be 3 or more"):
        CUEProcessor(processor.tokenizer, max_text_length=2)


def test_empty_arrays_are_refused_as_empty_lists_are(processor):
    for given in ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, {"text": np.array([])}, {"audio": torch.zeros(0, 99)}):
        with pytest.raises(ValueError, match="is an empty list: leave it out"):
            processor(**given)


def test_whisper_frames_do_not_depend_on_the_batch():
    processor = CUEProcessor(feature_extractor=WhisperFeatureExtractor())
    rng = np.random.default_rng(0)
    short, long = (rng.normal(size=n).astype(np.float32) * 0.1 for n in (16000, 40000))
    alone = processor(audio=short, sampling_rate=16000)["input_features"][0]
    beside = processor(audio=[short, long], sampling_rate=16000)["input_features"][0]
    assert torch.equal(beside[:, : alone.shape[1]], alone)


def test_a_damaged_part_is_named(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    for name in (None, "AutoModel"):
        saved["parts"] = [*saved["parts"], "frame_image_processor"]
        saved["frame_image_processor"] = {"image_processor_type": name}
        path.write_text(json.dumps(saved))
        with pytest.raises(ValueError, match="names no image processor"):
            CUEProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", [AutoProcessor, CUEProcessor])
def test_a_model_without_its_processor_is_named(model, tmp_path, loader):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a CUE without its processor: .*save_pretrained.*from_encoders"):
        loader.from_pretrained(tmp_path)


def test_where_there_is_no_cue_the_error_is_that_of_transformers(encoders, tmp_path):
    for place in (encoders["bert"], tmp_path / "nothing", tmp_path):
        with pytest.raises(Exception) as caught:
            CUEProcessor.from_pretrained(place)
        assert "holds a CUE" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "text is a int, .*: give a str or a list of str"),
        (Image.fromarray(IMAGE), "text is a Image, .*: give an image as images="),
        (IMAGE, "text is a ndarray, .*: give an image as images="),
        (torch.zeros(3), "text is a Tensor, .*: give an image as images="),
        ({"a dog": 1}, r"text is a dict, .*: give the text that it holds, such as row\['caption'\]"),
        ({"a dog", "a cat"}, "text is a set, .*: give a str or a list of str"),
        (b"a dog", r"text is a bytes, .*: decode text, as value\.decode\(\)"),
        (pd.DataFrame({"caption": ["a dog"]}), r"a DataFrame is a table: give one column, such as df\['caption'\]"),
    ],
)
def test_what_is_no_text_at_all(processor, text, message):
    with pytest.raises(TypeError, match=message):
        processor(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([["a dog", "a cat"]], "text number 0 is a list, which is no text: of a list of captions give one text each"),
        (["a dog", Image.fromarray(IMAGE)], "text number 1 is a Image, .*: give an image as images="),
        (["a dog", {"caption": "a cat"}], r"text number 1 is a dict, .* such as row\['caption'\]"),
        (["a dog", None], r"text number 1 is empty or no text \(None\): leave it out"),
        (["a dog", 3.5], "text number 1 is a float, which is no text"),
    ],
)
def test_what_is_no_text_in_a_list(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text)
    with pytest.raises(ValueError, match=message):
        processor(text=iter(text))


def test_one_text_has_tokens_as_a_list_of_it_has(processor):
    assert processor.token_ids("a dog") == processor.token_ids(["a dog"])
    assert len(processor.token_ids(dict.fromkeys(["a dog", "a cat"]).keys())) == 2


def test_columns_tuples_and_lists_of_numbers(processor):
    pictures = Dataset.from_dict({"image": [Image.fromarray(IMAGE)] * 3}, features=Features({"image": ImageColumn()}))
    assert processor(images=pictures["image"])["pixel_values"].shape[0] == 3
    assert processor(images=(IMAGE, IMAGE))["pixel_values"].shape[0] == 2
    assert processor(text=("a dog", "a cat"))["input_ids"].shape[0] == 2
    for column in (np.array(["a dog", "a cat"]), pd.Series(["a dog", "a cat"], index=[5, 6])):
        assert processor(text=column)["input_ids"].shape[0] == 2
    assert processor(text=np.array("a dog"))["input_ids"].shape[0] == 1
    assert processor(images=pd.Series([IMAGE, IMAGE]))["pixel_values"].shape[0] == 2
    one, other = (processor(audio=w, sampling_rate=16000)["input_features"] for w in (WAVE, WAVE.tolist()))
    assert torch.equal(one, other)
    assert processor(videos=np.stack([np.stack([IMAGE] * 4)] * 2))["pixel_values_videos"].shape[:2] == (2, 3)


def test_sounds_as_librosa_and_soundfile_give_them(processor):
    expected = processor(audio=[{"array": w, "sampling_rate": 8000} for w in (WAVE, WAVE[:4000])])["input_features"]
    stereo = np.stack([WAVE, WAVE], 1)  # as soundfile has it
    half = WAVE[:4000]
    for pairs in ([(WAVE, 8000), (torch.from_numpy(half), np.int64(8000))], ((stereo, 8e3), (half, 8000))):
        assert torch.equal(processor(audio=pairs)["input_features"], expected)
    for one in ((WAVE, 8000), (WAVE.tolist(), 8000)):
        assert torch.equal(processor(audio=one)["input_features"], expected[:1])


def test_generators_and_open_files(processor, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    whole = processor(images=[IMAGE, IMAGE], audio=[WAVE, WAVE], videos=[IMAGE, IMAGE], sampling_rate=16000)
    with open(tmp_path / "a.png", "rb") as file:
        given = {"images": iter([IMAGE, file]), "audio": (w for w in [WAVE] * 2), "videos": map(np.copy, [IMAGE] * 2)}
        found = processor(**given, sampling_rate=16000)
        alone = processor(images=file)["pixel_values"]
    for name, value in whole.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(alone, whole["pixel_values"][:1])
    for name in ("images", "audio", "videos"):
        with pytest.raises(ValueError, match=f"{name} is an empty list: leave it out"):
            processor(**{name: iter(())})


def test_frames_are_prepared_as_images_are(processor):
    frames = np.random.default_rng(1).integers(0, 255, (3, 40, 30, 3), dtype=np.uint8)
    video = processor(videos=frames)["pixel_values_videos"]
    assert torch.equal(video[0], processor(images=list(frames))["pixel_values"])


def test_sound_of_any_length_has_a_spectrogram(processor):
    for samples in (1, 100, 400, 700, 16000):
        inputs = processor(audio=WAVE[:1].repeat(samples), sampling_rate=16000)
        assert inputs["input_features"].shape[2] == inputs["input_features_mask"].sum() == -(-max(400, samples) // 160)
        assert inputs["input_features"].isfinite().all()
    long = processor(audio=np.zeros(31 * 16000, np.float32), sampling_rate=16000)
    assert long["input_features"].shape == (1, 20, 3000)  # cut at 30 s


def test_media_errors_reach_the_caller(processor):
    with pytest.raises(MediaError, match="no image that can be read"):
        processor(images=b"no image")
    with pytest.raises(MediaError, match="pass sampling_rate="):
        processor(audio=WAVE)
    with pytest.raises(MediaError, match="is no video"):
        processor(videos=IMAGE)


@pytest.mark.parametrize("name", ["text", "images", "audio", "videos"])
def test_an_empty_list_is_refused(processor, name):
    with pytest.raises(ValueError, match=f"{name} is an empty list: leave it out"):
        processor(**{name: []})


def test_a_generator_of_nothing_is_refused_too(processor):
    with pytest.raises(ValueError, match="text is an empty list: leave it out"):
        processor(text=(text for text in ()))
    with pytest.raises(ValueError, match="text is empty: leave it out"):
        processor(text={}.keys())


@pytest.mark.parametrize("rate", [0, float("nan"), float("inf"), "16000"])
def test_a_sampling_rate_is_a_number(processor, rate):
    with pytest.raises(MediaError, match="it must be a number of at least 1 Hz"):
        processor(audio=WAVE, sampling_rate=rate)


def test_text_needs_a_tokenizer(names):
    with pytest.raises(ValueError, match="has no tokenizer"):
        CUEProcessor.from_encoders(image=names["image"]).batch_decode([[1]])
    with pytest.raises(ValueError, match="max_text_length=0 is not valid"):
        CUEProcessor(max_text_length=0)


@pytest.mark.parametrize("video", ["vit", "timm", "videomae"])
def test_a_video_tower_gets_its_frames_as_it_wants_them(encoders, video, tmp_path):
    towers = {family: str(encoders[family]) for family in ("clip", video)}
    both = CUEProcessor.from_encoders(image=towers["clip"], video=towers[video])
    both.save_pretrained(tmp_path)
    again = CUEProcessor.from_pretrained(tmp_path)
    image, alone = CUEProcessor.from_encoders(image=towers["clip"]), CUEProcessor.from_encoders(video=towers[video])
    for processor in (both, again):
        given = processor(images=IMAGE, videos=[IMAGE])
        assert torch.equal(given["pixel_values"], image(images=IMAGE)["pixel_values"])
        assert torch.equal(given["pixel_values_videos"], alone(videos=[IMAGE])["pixel_values_videos"])
    assert not torch.equal(given["pixel_values"], given["pixel_values_videos"][:, 0])


@pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorPil])
def test_both_backends_of_image_processors_come_back(kind, tmp_path):
    size = {"height": 32, "width": 32}
    processor = CUEProcessor(image_processor=kind(size={"shortest_edge": 32}, crop_size=size), num_frames=2)
    processor.save_pretrained(tmp_path)
    again = CUEProcessor.from_pretrained(tmp_path)
    one, two = (p(images=IMAGE, videos=[IMAGE]) for p in (processor, again))
    assert one["pixel_values"].shape == (1, 3, 32, 32)
    assert torch.allclose(one["pixel_values"], two["pixel_values"], atol=0.05)


def test_settings_survive_and_can_be_overridden(names, tmp_path):
    settings = {"text_prefix": "the ", "max_text_length": 7, "num_frames": 5, "audio_padding": "max_length"}
    CUEProcessor.from_encoders(**names, **settings).save_pretrained(tmp_path)
    again = CUEProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in settings} == settings
    assert CUEProcessor.from_pretrained(tmp_path, num_frames=2).num_frames == 2


def test_texts_of_siglip_are_padded_to_their_one_length(encoders, tmp_path):
    CUEProcessor.from_encoders(text=str(encoders["siglip_text"])).save_pretrained(tmp_path)
    processor = CUEProcessor.from_pretrained(tmp_path)
    inputs = processor(text=["a dog", "the red cat"])
    assert inputs["input_ids"].shape == (2, 24)
    assert inputs["input_ids"][:, -1].tolist() == [0, 0]  # the tokenizer's token, not the configuration's
    assert inputs["attention_mask"].sum(1).tolist() == [3, 4]
    assert processor(text="a " * 50)["input_ids"].shape == (1, 24)
    with pytest.raises(ValueError, match="text_padding='none' is not valid"):
        CUEProcessor(text_padding="none")


@pytest.mark.parametrize("fast", [True, False])
def test_frames_of_videomae_are_its_own_processors(encoders, fast):
    processor = CUEProcessor.from_encoders(video=str(encoders["videomae"]), fast_images=fast)
    frames = [np.random.default_rng(i).integers(0, 255, (40, 30, 3), dtype=np.uint8) for i in range(4)]
    own = processor.image_processor([frames], return_tensors="pt")["pixel_values"]
    ours = processor(videos=[frames, frames[::-1]])["pixel_values_videos"]
    assert ours.shape == (2, 4, 3, 32, 32)
    torch.testing.assert_close(ours, torch.cat([own, own.flip(1)]), rtol=0, atol=0.05 if fast else 0)


@pytest.mark.parametrize("family", ["clap", "clap_fused"])
def test_a_long_sound_is_cut_alike_each_time(encoders, family):
    processor = CUEProcessor.from_encoders(audio=str(encoders[family]))
    long = np.random.default_rng(0).normal(size=3 * 48000).astype(np.float32)
    np.random.seed(3)
    one, drawn = processor(audio=[long], sampling_rate=48000), np.random.rand()
    other = processor(audio=[long[:4800], long], sampling_rate=48000)
    assert torch.equal(one["input_features"][0], other["input_features"][1])
    np.random.seed(3)
    assert np.random.rand() == drawn  # nobody else's chance has changed
    assert set(one) == {"input_features"}


def test_sounds_of_bare_samples_are_cut_at_30_s(encoders):
    processor = CUEProcessor.from_encoders(audio=str(encoders["wav2vec2"]))
    inputs = processor(audio=[np.ones(31 * 16000, np.float32), WAVE[:100]], sampling_rate=16000)
    assert inputs["input_features"].shape == (2, 30 * 16000)
    assert inputs["input_features_mask"].sum(1).tolist() == [30 * 16000, 400]


def test_what_says_where_files_are_reaches_every_part(names, monkeypatch):
    asked = []

    class Spy:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append(options)
            return AutoTokenizer.from_pretrained(name, **options)

    monkeypatch.setitem(processing_parts.PARTS, "tokenizer", Spy)
    given = {"local_files_only": True, "revision": "v1", "dtype": torch.bfloat16, "attn_implementation": "eager"}
    CUEProcessor.from_encoders(text=names["text"], encoder_kwargs=given)
    assert asked == [{"local_files_only": True, "revision": "v1"}]


def test_a_processor_that_was_used_has_the_same_fingerprint(names):
    processor = CUEProcessor.from_encoders(**names)
    before = Hasher.hash(processor)
    given = {"text": ["a dog", "the cat"], "images": IMAGE, "audio": WAVE, "videos": [IMAGE], "sampling_rate": 16000}
    used = processor(**given)
    assert Hasher.hash(processor) == before
    again = pickle.loads(pickle.dumps(processor))
    assert Hasher.hash(again) == before
    for name, value in again(**given).items():
        assert torch.equal(value, used[name]), name
    processor.num_frames = 3
    assert Hasher.hash(processor) != before


def test_settings_changed_in_place_are_heeded(processor):
    processor = copy.deepcopy(processor)
    picture = Image.new("RGB", (60, 50), "red")
    assert processor(images=picture)["pixel_values"].shape[-2:] == (32, 32)
    own = processor.image_processor
    own.size["shortest_edge"] = own.crop_size["height"] = own.crop_size["width"] = 48
    assert processor(images=picture)["pixel_values"].shape[-2:] == (48, 48)


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "roberta", "siglip_text", "clip_text"])
def test_tiny_tokenizers_number_their_tokens_without_gaps(family):
    _, tokenizer = TOWERS[family].make()
    vocab = getattr(tokenizer, "tokenizer", tokenizer).get_vocab()
    assert sorted(vocab.values()) == list(range(len(vocab)))


@torch.no_grad()
def test_the_pipeline_of_transformers_takes_the_processor_as_tokenizer(model, processor, monkeypatch):
    monkeypatch.setattr(processor, "text_prefix", "the man ")
    expected = model.eval().get_text_features(**processor(text="a dog"))[0]
    for tokenizer, same in ((processor, True), (processor.tokenizer, False)):
        pipe = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
        found = torch.tensor(pipe("a dog")).flatten()
        assert torch.allclose(found[: len(expected)], expected, atol=1e-5) == same
