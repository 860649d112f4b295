"""A saved or pushed CUE as a SentenceTransformer: the same axes and radii, from the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from strangers import HIDE

from modeling_cue import CUEModel, CUEProcessor

sentence_transformers = pytest.importorskip(
    "sentence_transformers", "6.2", reason="needs sentence-transformers 6.2: pip install cue-embedder[sentence]"
)
ROOT = str(Path(__file__).resolve().parents[1])
WAVE = (np.sin(np.arange(8000) / 5) * 0.1).astype(np.float32)
TEXTS = ["a red dog", "the cat", "a man jumps in the big circle", "the dog"]
# What a stranger does who has sentence-transformers and not this package.
STRANGER = """
import json, sys
import numpy as np, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
source, work = sys.argv[1:3]
images = [Image.open(f"{work}/{n}.png") for n in range(2)]
wave = {"array": np.load(work + "/wave.npy"), "sampling_rate": 16000}
inputs = {
    "text": json.loads(sys.argv[3]), "image": [work + "/0.png", images[1]],
    "audio": [wave, {"audio": work + "/wave.wav"}],
    "video": [{"video": images}, np.stack([np.asarray(image) for image in images])],
}
def cones(name):
    model = SentenceTransformer(name, trust_remote_code=True, device="cpu")
    found = {kind: model.encode(values, output_value=None) for kind, values in inputs.items()}
    for kind, values in inputs.items():
        whole = torch.stack([one["sentence_embedding"] for one in found[kind]])
        assert torch.allclose(model.encode(values, convert_to_tensor=True), whole, atol=1e-6)
    return model, {k: {n: torch.stack([one[n] for one in v]) for n in v[0]} for k, v in found.items()}
model, found = cones(source)
torch.save(found, work + "/found.pt")
model.save_pretrained(work + "/again")
torch.save(cones(work + "/again")[1], work + "/found_again.pt")
assert "modeling_cue" not in sys.modules and "configuration_cue" not in sys.modules
"""


def stranger(source, work, **environment):
    """What a process without the package finds, and finds again in what it saved."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "HF_"))}
    env |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIDE + STRANGER, str(source), str(work), json.dumps(TEXTS), ROOT],
        env=env, cwd=work, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(work / "found.pt"), torch.load(work / "found_again.pt")


@pytest.fixture
def work(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    np.save(tmp_path / "wave.npy", WAVE)
    soundfile.write(tmp_path / "wave.wav", WAVE, 16000)
    return tmp_path


@pytest.fixture
def images(work):
    return [Image.open(work / f"{number}.png").convert("RGB") for number in range(2)]


@pytest.fixture(scope="module")
def saved(_model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "cue"
    _model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentence(saved):
    return sentence_transformers.SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")


@torch.no_grad()
def expected(model, processor, work, images):
    clip = np.stack([np.asarray(image) for image in images])
    inputs = {
        "text": processor(text=TEXTS),
        "image": processor(images=images),
        "audio": processor(audio=[{"array": WAVE, "sampling_rate": 16000}, str(work / "wave.wav")]),
        "video": processor(videos=[images, clip]),
    }
    return {m: getattr(model, f"get_{m}_cones")(**values) for m, values in inputs.items()}


def assert_same(found, cones):
    assert set(found) == set(cones)
    for modality, cone in cones.items():
        torch.testing.assert_close(found[modality]["sentence_embedding"], cone.axis, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[modality]["radius"], cone.radius, atol=1e-6, rtol=0)


def weights(folder):
    suffixes = {".safetensors", ".bin", ".pt", ".pth", ".onnx"}
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in suffixes)


@pytest.mark.parametrize("order", ["mp", "pm", "mpmp"])
def test_every_order_of_saving_leaves_one_folder_for_both(model, processor, tmp_path, order):
    for step in order:
        (model if step == "m" else processor).save_pretrained(tmp_path)
    assert weights(tmp_path) == ["model.safetensors"]
    (module,) = json.loads((tmp_path / "modules.json").read_text())
    assert module["path"] == ""
    assert (tmp_path / f"{module['type'].split('.')[0]}.py").is_file()
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "cosine"
    assert not [p for p in tmp_path.iterdir() if "training" in p.name or "index" in p.name]


def test_a_stranger_embeds_every_modality(model, processor, saved, work, images):
    cones = expected(model, processor, work, images)
    for found in stranger(saved, work):
        assert_same(found, cones)
    assert weights(work / "again") == ["model.safetensors"]


@pytest.mark.hub
def test_a_stranger_embeds_a_pushed_cue(model, processor, saved, work, images, hub_tools):
    cones = expected(model, processor, work, images)
    # Uploading ends inside `save_pretrained`: nothing may be written later.
    push = (
        "import sys; from modeling_cue import CUEModel, CUEProcessor\n"
        "CUEProcessor.from_pretrained(sys.argv[1]).push_to_hub('org/cue')\n"
        "CUEModel.from_pretrained(sys.argv[1]).save_pretrained('fresh', push_to_hub=True, repo_id='org/cue')\n"
        "CUEModel.from_pretrained(sys.argv[1]).push_to_hub('org/other')\n"
        "from huggingface_hub import list_repo_files\n"
        "print(*(sorted(list_repo_files('org/' + name)) for name in ('cue', 'other')), sep='\\n')\n"
    )
    with hub_tools.HubSim(work / "hub") as hub:
        environment = hub.env(home=work / "home")
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", push, str(saved)], env=env | {"PYTHONPATH": ROOT}, cwd=work,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        for files in done.stdout.splitlines()[-2:]:
            for name in ("modules.json", "config_sentence_transformers.json", "sentence_transformers_cue.py"):
                assert repr(name) in files
            assert files.count("safetensors") == 1
        for found in stranger("org/cue", work, HF_HUB_OFFLINE="0", **environment):
            assert_same(found, cones)


def test_similarity_is_the_cosine_of_axes(sentence, model, processor, work, images):
    cones = expected(model, processor, work, images)
    found = sentence.similarity(sentence.encode(TEXTS), sentence.encode(images))
    torch.testing.assert_close(found, cones["text"].axis @ cones["image"].axis.T, atol=1e-6, rtol=0)
    assert sentence.similarity_fn_name == "cosine"
    assert sentence.get_embedding_dimension() == sentence.encode("a dog").shape[0] == 16
    assert sentence.modalities == ["text", "image", "audio", "video"]


def test_an_evaluator_runs(sentence):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    documents = {str(number): text for number, text in enumerate(TEXTS)}
    # Each text looks for itself, and finds it; where it looks for the next one, it does not.
    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        relevant = {str(number): {str((number + shift) % len(TEXTS))} for number in range(len(TEXTS))}
        evaluator = InformationRetrievalEvaluator(documents, documents, relevant, write_csv=False)
        assert evaluator(sentence)["cosine_accuracy@1"] == accuracy


def test_embeddings_have_gradients_and_prompts_stand_before_texts(sentence, model, processor):
    embedded = sentence(sentence.preprocess(["a dog"], prompt="the red "))["sentence_embedding"]
    assert embedded.requires_grad
    axis = model.get_text_features(**processor(text=["the red a dog"]))
    torch.testing.assert_close(embedded, axis, atol=1e-6, rtol=0)


def test_an_empty_document_does_not_end_a_corpus(sentence):
    alone, both = sentence.encode("a dog"), sentence.encode(["a dog", ""])
    assert both[0] == pytest.approx(alone, abs=1e-6)
    assert np.linalg.norm(both[1]) == pytest.approx(1.0, abs=1e-5)


def test_texts_are_cut_where_asked(sentence):
    for longest in (4, None):
        sentence.max_seq_length = longest
        tokens = sentence.preprocess(["a man jumps in the big circle"])["input_ids"]
        assert tokens.shape == (1, longest or 9)
    assert sentence.tokenizer is sentence.processor.tokenizer


def test_lengths_that_the_tower_cannot_take_are_refused(saved, encoders, tmp_path):
    sentence = sentence_transformers.SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")
    assert sentence.max_seq_length == 32  # what the tokenizer states
    for length, message in ((1, "it must be 3 or more"), (100, "the text tower has places for 40 tokens")):
        with pytest.raises(ValueError, match=f"max_seq_length={length} is not valid.*{message}"):
            sentence.max_seq_length = length
        assert sentence.max_seq_length == 32
    sentence.max_seq_length = 40
    assert sentence.encode("the " * 90).shape == (16,)
    sentence.tokenizer.model_max_length = int(1e30)
    sentence.max_seq_length = None
    assert sentence.max_seq_length == 40
    sizes = {"projection_dim": 8, "composition_dim": 8}
    CUEModel.from_encoders(image=encoders["clip"], **sizes).save_pretrained(tmp_path)
    CUEProcessor.from_encoders(image=encoders["clip"]).save_pretrained(tmp_path)
    pictures = sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert pictures.max_seq_length is None
    with pytest.raises(ValueError, match="max_seq_length=8 is not valid: this CUE has no text tower"):
        pictures.max_seq_length = 8


def test_saving_again_keeps_a_users_prompts(saved, model, tmp_path):
    prompted = sentence_transformers.SentenceTransformer(
        str(saved), trust_remote_code=True, device="cpu", prompts={"query": "the "}
    )
    prompted.save_pretrained(str(tmp_path), create_model_card=False)
    model.save_pretrained(tmp_path)
    again = sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert again.prompts["query"] == "the "
    assert weights(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([WAVE], "without its sampling rate"),
        ([3.5], "Unsupported input type"),
        ([("a dog", "a cat")], "no text"),
        (["https://example.com/dog.jpg"], "addresses are not fetched"),
        (["a dog", {"array": WAVE, "sampling_rate": 16000}], "Encode each modality separately"),
        ([{"text": "a dog", "image": np.zeros((8, 8, 3), np.uint8)}], "cannot combine them"),
        ([[{"role": "user", "content": "hello"}]], "message"),
    ],
)
def test_bad_input_is_named(sentence, inputs, message):
    with pytest.raises(ValueError, match=message):
        sentence.encode(inputs)


def test_a_modality_that_the_model_lacks_is_named(encoders, tmp_path):
    names = {"text": encoders["bert"], "image": encoders["clip"]}
    CUEModel.from_encoders(**names, projection_dim=8, composition_dim=8).save_pretrained(tmp_path)
    CUEProcessor.from_encoders(**names).save_pretrained(tmp_path)
    sentence = sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert sentence.modalities == ["text", "image"]
    with pytest.raises(ValueError, match="'audio' is not supported by this"):
        sentence.encode({"array": WAVE, "sampling_rate": 16000})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"backend": "onnx"}, "CUE runs in torch"), ({"config_kwargs": {"num_frames": 2}}, "pass model_kwargs")],
)
def test_what_a_cue_cannot_do_is_named(saved, options, message):
    with pytest.raises(ValueError, match=message):
        sentence_transformers.SentenceTransformer(str(saved), trust_remote_code=True, device="cpu", **options)


def test_code_of_a_folder_runs_only_where_it_is_trusted(saved):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        sentence_transformers.SentenceTransformer(str(saved), device="cpu")


def test_a_path_that_leads_nowhere_is_not_embedded_as_a_name(saved):
    model = sentence_transformers.SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")
    with pytest.raises(ValueError, match="there is no file 'photos/p99.jpg'"):
        model.encode(["photos/p99.jpg"])
    assert model.encode([{"text": "photos/p99.jpg"}, "see photos/p99.jpg", "e.g."]).shape[0] == 3
