"""ZeroShotClassifier: files of every modality, the ensemble of templates, none of these, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from samples import gif

from modeling_cue import Cone, CUEModel, CUEProcessor, ZeroShotClassifier, containment_margin, join_many
from modeling_cue.media_files import MediaError

LABELS = ["dog", "cat", "red circle"]
TEMPLATES = ("a {}", "the big {}")


@pytest.fixture
def classify(model, processor):
    return ZeroShotClassifier(model, processor, LABELS, TEMPLATES)


@pytest.fixture
def files(tmp_path):
    """A file of each modality, by modality."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "photo.PNG")
    soundfile.write(tmp_path / "horn.wav", np.sin(np.arange(8000) / 5).astype(np.float32), 16000)
    # PyAV goes by what is in a file, not by its name.
    (tmp_path / "clip.mp4").write_bytes(gif(rng))
    (tmp_path / "note.txt").write_text("the dog runs\n")
    names = {"text": "note.txt", "image": "photo.PNG", "audio": "horn.wav", "video": "clip.mp4"}
    return {modality: str(tmp_path / name) for modality, name in names.items()}


def plain_scores(model, processor, cone, labels=LABELS, templates=TEMPLATES):
    """Scores and containment of one input (1,), one label at a time."""
    logit_scale, scale, bias = model.scales()
    logits, chances = [], []
    for label in labels:
        with torch.no_grad():
            each = [model.get_text_cones(**processor(text=template.format(label))) for template in templates]
        axis = sum(c.axis for c in each) / len(each)
        mean = Cone(axis / axis.norm(), sum(c.radius for c in each) / len(each))
        logits.append((logit_scale * (cone.axis * mean.axis).sum()).item())
        chances.append(torch.sigmoid(scale * (containment_margin(mean, cone) + bias)).item())
    return torch.tensor(logits).softmax(0).tolist(), chances


def test_sound_as_datasets_give_it(model, processor):
    classify = ZeroShotClassifier(model, processor, ["a dog", "a cat"])
    wave = np.sin(np.arange(8000) / 9).astype(np.float32)
    assert classify({"array": wave, "sampling_rate": 16000}) == classify(wave, modality="audio", sampling_rate=16000)


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
def test_a_file_of_each_modality_by_its_suffix(classify, files, model, processor, modality):
    value = "the dog runs" if modality == "text" else files[modality]
    argument = {"text": "text", "image": "images", "audio": "audio", "video": "videos"}[modality]
    with torch.no_grad():
        cone = getattr(model, f"get_{modality}_cones")(**processor(**{argument: value}))
    scores, chances = plain_scores(model, processor, cone)
    answer = classify(files[modality])
    assert [one["score"] for one in answer] == sorted((one["score"] for one in answer), reverse=True)
    found = {one["label"]: one for one in answer}
    assert set(found) == set(LABELS)
    for label, score, chance in zip(LABELS, scores, chances, strict=True):
        assert found[label]["score"] == pytest.approx(score, abs=1e-5)
        assert found[label]["containment"] == pytest.approx(chance, abs=1e-5)
    assert sum(one["score"] for one in answer) == pytest.approx(1, abs=1e-5)
    assert_alike(classify(Path(files[modality])), answer)


def assert_alike(found, expected):
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["containment"] == pytest.approx(other["containment"], abs=1e-5)


def test_a_mixed_list_is_its_items_in_their_order(classify, files):
    classify.batch_size = 2
    inputs = [files["audio"], "a red dog", files["image"], files["video"], "the cat", files["text"], "a man"]
    answers = classify(inputs)
    assert len(answers) == len(inputs)
    for value, answer in zip(inputs, answers, strict=True):
        assert_alike(answer, classify(value))
    assert classify(inputs[:1])[0][0]["label"] == answers[0][0]["label"]  # a list of one is a list


def test_what_is_decoded_tells_its_modality_too(classify, files):
    image, (wave, rate) = Image.open(files["image"]), soundfile.read(files["audio"], dtype="float32")
    assert_alike(classify(image), classify(files["image"]))
    assert_alike(classify(np.asarray(image)), classify(files["image"]))
    assert_alike(classify(torch.from_numpy(wave), sampling_rate=rate), classify(files["audio"]))
    assert_alike(classify((wave, rate)), classify(files["audio"]))
    assert_alike(classify(iter([(wave, rate), image]))[0], classify(files["audio"]))
    assert_alike(classify({"bytes": Path(files["image"]).read_bytes(), "path": "x.png"}), classify(files["image"]))
    assert_alike(classify(Path(files["image"]).read_bytes(), modality="image"), classify(files["image"]))
    still = np.stack([np.asarray(image)] * 4)
    assert_alike(classify(still), classify([[image] * 4], modality="video")[0])
    # A name that says image, and a user who knows better.
    moving = Path(files["video"]).rename(Path(files["video"]).with_suffix(".gif"))
    assert len(classify(moving, modality="video")) == 3
    assert_alike(classify("photo.png", modality="text"), classify(["photo.png"], modality="text")[0])


@pytest.mark.parametrize("text", ["dog", "a dog. It runs", "the dog runs.", "version 2.5 of a dog"])
def test_a_sentence_is_no_file(classify, text):
    assert_alike(classify(text), classify(text, modality="text"))


def test_none_of_these(model, processor):
    def ask(**settings):
        return ZeroShotClassifier(model, processor, LABELS, none_label="none of these", **settings)("a man")

    plain = ZeroShotClassifier(model, processor, LABELS)("a man")
    most = max(one["containment"] for one in plain)
    # What contains the input comes first, also where something nearer does not.
    inside = [one for one in plain if one["containment"] >= most]
    assert_alike(ask(threshold=most), inside + [one for one in plain if one["containment"] < most])
    none, *others = ask(threshold=most + 1e-6)
    assert none == {"label": "none of these", "score": 1 - most, "containment": 1 - most}
    assert_alike(others, [one | {"score": one["score"] * most} for one in plain])
    assert sum(one["score"] for one in [none, *others]) == pytest.approx(1)
    # Labels as wide as the sphere leave nothing out, and as narrow as a point everything.
    for shift, answer in ((10.0, plain[0]["label"]), (-10.0, "none of these")):
        with torch.no_grad():
            model.scales.containment_bias.fill_(shift)
        assert ask()[0]["label"] == answer


def test_templates_are_an_ensemble(model, processor):
    one = ZeroShotClassifier(model, processor, LABELS, "a {}").cones
    two = ZeroShotClassifier(model, processor, LABELS, "the big {}").cones
    both = ZeroShotClassifier(model, processor, LABELS, TEMPLATES, batch_size=4).cones
    torch.testing.assert_close(both.radius, (one.radius + two.radius) / 2)
    torch.testing.assert_close(both.axis, torch.nn.functional.normalize(one.axis + two.axis, dim=-1))
    # The same sentence twice is the sentence.
    torch.testing.assert_close(ZeroShotClassifier(model, processor, LABELS, ["a {}"] * 2).cones.axis, one.axis)
    assert join_many(both).radius.ndim == 0  # plain cones, for the algebra
    with_braces = ZeroShotClassifier(model, processor, ["{dog}"], "{0} a {}")
    assert with_braces("a dog")[0]["label"] == "{dog}"


def test_it_is_loaded_by_name_and_needs_no_gradient(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "cue")
    processor.save_pretrained(tmp_path / "cue")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "cue", LABELS, TEMPLATES, revision="main")
    model.train()
    here = ZeroShotClassifier(model, processor, LABELS, TEMPLATES)
    assert not model.training
    assert not here.cones.axis.requires_grad
    assert torch.equal(loaded.cones.axis, here.cones.axis)
    assert repr(loaded) == "ZeroShotClassifier(3 labels, 2 templates)"
    assert loaded("a red dog", top_k=1) == here("a red dog")[:1]
    half = ZeroShotClassifier.from_pretrained(tmp_path / "cue", LABELS, TEMPLATES, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    rng = np.random.default_rng(0)
    inputs = ["the dog", rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)]
    assert [len(answer) for answer in half(inputs)] == [3, 3]
    assert len(half(rng.normal(size=8000).astype(np.float32) * 0.1, sampling_rate=16000)) == 3


@pytest.mark.parametrize(
    ("labels", "settings", "reason"),
    [
        ([], {}, "there are no labels"),
        ("dog, cat", {}, "labels is one string"),
        (["dog", " "], {}, "label number 1 is empty"),
        (["dog", 3], {}, "label number 1 is empty or no text"),
        (["dog", "cat", "dog"], {}, "'dog' stands 2 times"),
        (["dog"], {"templates": []}, "there are no templates"),
        (["dog"], {"templates": ["a {}", "a photo"]}, "the template 'a photo' has no {}"),
        (["dog"], {"none_label": "dog"}, "none_label='dog' is not valid"),
        (["dog"], {"none_label": ""}, "none_label='' is not valid"),
        (["dog"], {"threshold": 1.5}, "threshold=1.5 is not valid"),
        (["dog"], {"batch_size": 0}, "batch_size=0 is not valid"),
    ],
)
def test_what_it_is_not_built_from(model, processor, labels, settings, reason):
    with pytest.raises(ValueError, match=reason):
        ZeroShotClassifier(model, processor, labels, **settings)


@pytest.mark.parametrize(
    ("inputs", "settings", "reason"),
    [
        ([], {}, "the list of inputs is empty"),
        ("", {}, "text number 0 is empty"),
        ("dog.xyz", {}, "'dog.xyz' has the suffix '.xyz', which tells no modality: give modality="),
        (Path("dog"), {}, "'dog' has the suffix ''"),
        (b"bytes", {}, "a bytes tells no modality: give modality="),
        ({"bytes": b"bytes", "path": None}, {}, "a dict tells no modality"),
        (np.zeros((4, 4)), {}, r"a ndarray of shape \(4, 4\) tells no modality"),
        ([0.1, 0.2], {"modality": "audio"}, "give one sound as an array"),
        ([Image.new("RGB", (8, 8))] * 2, {"modality": "video"}, "a list within the list"),
        ("a dog", {"modality": "smell"}, "modality='smell' is not valid; it must be one of text, image"),
        ("a dog", {"top_k": 0}, "top_k=0 is not valid"),
        (np.zeros(8000, np.float32), {}, "pass sampling_rate="),
    ],
)
def test_what_it_does_not_classify(classify, inputs, settings, reason):
    with pytest.raises(ValueError, match=reason):
        classify(inputs, **settings)


def test_files_that_are_not_there(classify):
    for name, kind in (("no.jpg", "image"), ("no.wav", "audio"), ("no.mp4", "video"), ("no.txt", "text file")):
        with pytest.raises(MediaError, match=f"{kind}.*{name}"):
            classify(name)


def test_a_modality_that_the_model_lacks(names):
    pair = {"text": names["text"], "image": names["image"]}
    model, processor = CUEModel.from_encoders(**pair, projection_dim=16), CUEProcessor.from_encoders(**pair)
    with pytest.raises(ValueError, match="this CUE has no audio modality; it has text, image"):
        ZeroShotClassifier(model, processor, LABELS)("horn.wav")
    pair = {"image": names["image"], "audio": names["audio"]}
    model, processor = CUEModel.from_encoders(**pair, projection_dim=16), CUEProcessor.from_encoders(**pair)
    with pytest.raises(ValueError, match="this CUE has no text modality"):
        ZeroShotClassifier(model, processor, LABELS)
