"""Tiny towers built from configs, processors built from files written here: nothing is downloaded."""

import copy
import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path

import pytest
import torch
from strangers import make_pair
from tiny import TOWERS, make_encoder

from modeling_cue import CUEModel, CUEProcessor

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Folders of tiny pretrained encoders by family, each with its own processor: what `from_encoders` loads."""
    root = tmp_path_factory.mktemp("encoders")
    return {family: make_encoder(family, root / family) for family in TOWERS}


@pytest.fixture(scope="session")
def names(encoders):
    """Arguments of `from_encoders` for a tiny CUE of four modalities."""
    names = {"text": encoders["bert"], "image": encoders["clip"], "audio": encoders["whisper"]}
    return {modality: str(folder) for modality, folder in names.items()} | {"video": "image"}


@pytest.fixture(scope="session")
def _model(names):
    torch.manual_seed(0)
    return CUEModel.from_encoders(**names, projection_dim=16, num_frames=3, composition_dim=16).eval()


@pytest.fixture
def model(_model):
    """A fresh copy of a tiny CUE of four modalities."""
    return copy.deepcopy(_model)


@pytest.fixture(scope="session")
def processor(names):
    return CUEProcessor.from_encoders(**names, num_frames=3)


@pytest.fixture(scope="module")
def checkpoint(_model, processor, tmp_path_factory):
    """The folder of a saved model and processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    _model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(names, tmp_path_factory):
    """Model, processor, a folder with input files, and the cones of that input, which strangers must give too."""
    return make_pair(names, tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="session")
def shared():
    """The folder of shared real data and tools; absent for a user."""
    if not SHARED.is_dir():
        pytest.skip("the shared folder with real data and the loopback Hub is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def hub_tools(shared):
    """The loopback Hub's module."""
    path = shared / "tools" / "hubsim.py"
    if not path.is_file():
        pytest.skip("there is no loopback Hub beside this checkout")
    spec = importlib.util.spec_from_file_location("hubsim", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
