"""A process that cannot import the package: what it answers with a checkpoint, loaded as a stranger would."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from modeling_cue import CUEModel, CUEProcessor

STRANGER = """
import sys
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
source, work, again = sys.argv[1:4]
def cones(name):
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    assert type(processor).__name__ == "CUEProcessor", type(processor)
    if again:
        assert "transformers_modules" in type(model).__module__, type(model).__module__
    image, wave = np.load(work + "/image.npy"), np.load(work + "/wave.npy")
    texts = ["a red dog", "the cat"]
    inputs = processor(text=texts, images=[image], audio=[wave], videos=[[image] * 4], sampling_rate=16000)
    with torch.no_grad():
        return model, processor, {k: (c.axis, c.radius) for k, c in model(**inputs).cones.items()}
if not again:
    import modeling_cue
model, processor, found = cones(source)
torch.save(found, work + "/found.pt")
if again:
    assert type(AutoConfig.from_pretrained(source, trust_remote_code=True)).__name__ == "CUEConfig"
    for part in (processor, model) if again == "processor first" else (model, processor):
        part.save_pretrained(work + "/again")
    torch.save(cones(work + "/again")[2], work + "/found_again.pt")
    assert "modeling_cue" not in sys.modules and "configuration_cue" not in sys.modules
"""
# An editable installation of the package would let local classes win: the stranger may not see it.
HIDE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path = [p for p in sys.path if p not in ("", sys.argv[4])]
"""


def make_pair(names, folder):
    """Model, processor, the folder with input files, and the cones of that input."""
    torch.manual_seed(0)
    model = CUEModel.from_encoders(**names, projection_dim=16, num_frames=3, composition_dim=16).eval()
    processor = CUEProcessor.from_encoders(**names, num_frames=3, text_prefix="the ")
    rng = np.random.default_rng(0)
    image, wave = rng.integers(0, 255, (40, 30, 3), dtype=np.uint8), rng.normal(size=8000).astype(np.float32) * 0.1
    np.save(folder / "image.npy", image)
    np.save(folder / "wave.npy", wave)
    # The same question in a process that has the package: what strangers must answer to the bit.
    model.save_pretrained(folder / "cue")
    processor.save_pretrained(folder / "cue")
    run(folder / "cue", folder, "")
    return model, processor, folder, torch.load(folder / "found.pt")


def run(source, folder, again, **environment):
    root = str(Path(__file__).resolve().parents[1])
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "HF_"))}
    env |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"} | environment
    code = HIDE + STRANGER if again else f"import sys; sys.path.insert(0, {root!r})\n" + STRANGER
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(source), str(folder), again, root],
        env=env, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def stranger(source, folder, tmp_path, again="model first", **environment):
    """Loads in a process that cannot import the package, and saves and loads once more from there."""
    for name in ("image.npy", "wave.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    run(source, tmp_path, again, **environment)
    return torch.load(tmp_path / "found.pt"), torch.load(tmp_path / "found_again.pt")


def assert_same(found, expected):
    assert set(found) == set(expected)
    for kind, (axis, radius) in expected.items():
        assert torch.equal(found[kind][0], axis), kind
        assert torch.equal(found[kind][1], radius), kind
