"""What the README and the documents say by code is run: the tour on a tiny model in place of org/cue."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def block(word: str) -> str:
    """The one block of code that holds a word."""
    (found,) = [code for code in BLOCKS if word in code]
    return found


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(2)]


def test_the_tour(model, processor, photos, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "org" / "cue")
    processor.save_pretrained(tmp_path / "org" / "cue")
    soundfile.write(tmp_path / "horn.wav", np.sin(np.arange(8000) / 5).astype(np.float32), 16000)
    monkeypatch.chdir(tmp_path)
    found = {"photo": photos[0], "other_photo": photos[1]}
    exec(compile(block("containment_probability"), "README.md", "exec"), found)
    assert found["text"].axis.shape == (2, 16)
    assert found["inside"].dtype == torch.bool
    assert ((found["chance"] > 0) & (found["chance"] < 1)).all()
    assert found["compound"].axis.shape == (1, 16)
    assert sorted(found["best"][0].tolist()) == [0, 1]
    torch.testing.assert_close(found["scores"].sum(-1), torch.ones(2))
    assert bool((found["wider"].radius >= found["common"].radius).all())


def test_zero_shot(model, processor, photos, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "org" / "cue")
    processor.save_pretrained(tmp_path / "org" / "cue")
    soundfile.write(tmp_path / "horn.wav", np.sin(np.arange(8000) / 5).astype(np.float32), 16000)
    photos[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(block("ZeroShotClassifier"), "README.md", "exec"), found)
    assert set(found["answer"][-1]) == {"label", "score", "containment"}
    assert [len([a for a in answer if a["label"] != "none of these"]) for answer in found["answers"]] == [2, 2, 2]


def test_sentence_transformers(model, processor, photos, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers", "6.2", reason="needs sentence-transformers 6.2")
    model.save_pretrained(tmp_path / "org" / "cue")
    processor.save_pretrained(tmp_path / "org" / "cue")
    wave = np.sin(np.arange(8000) / 5).astype(np.float32)
    soundfile.write(tmp_path / "horn.wav", wave, 16000)
    photos[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = {"photo": photos[0], "other_photo": photos[1], "wave": wave}
    exec(compile(block("SentenceTransformer"), "README.md", "exec"), found)
    assert [found[name].shape for name in ("texts", "images", "sounds", "clips")] == [(2, 16)] * 3 + [(1, 16)]
    assert found["scores"].shape == (2, 2)
    cones = model.get_text_cones(**processor(text=["a red circle", "a blue square"]))
    assert found["radii"] == pytest.approx(cones.radius.tolist(), abs=1e-6)


@pytest.mark.hub
def test_start_from_towers_and_share(encoders, hub_tools, tmp_path):
    names = {"intfloat/e5-base-v2": "bert", "openai/clip-vit-base-patch32": "clip", "openai/whisper-base": "whisper"}
    for name, family in names.items():
        target = tmp_path / "seed" / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(encoders[family])
    with hub_tools.HubSim(tmp_path / "hub", orgs=["me"]) as hub:
        hub.store.seed(str(tmp_path / "seed"))
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub.env(home=tmp_path / "home")
        code = block("from_encoders") + "\nprint(processor.text_prefix, model.config.modalities)"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=300, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("query:  ('text', 'image', 'audio', 'video')")


def test_the_table_of_volumes_is_what_its_lines_print(capsys):
    page = (ROOT / "docs" / "cones.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/cones.md", "exec"), {})
    table = re.search(r"(\| 0\.50 .*?)\n\n", page, re.DOTALL)
    assert table is not None
    assert capsys.readouterr().out.strip() == table[1]


def test_the_test_command_is_the_one_that_ci_runs():
    text = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```bash\n(.*?)\n```", text, re.DOTALL)
    assert command is not None
    assert "pytest" in command[1]
    # Line by line what the script takes out of README.md.
    script = (ROOT / ".ci" / "run").read_text()
    awk = re.search(r"awk '(.*?)' README\.md", script)
    assert awk is not None
    found = subprocess.run(["awk", awk[1], str(ROOT / "README.md")], capture_output=True, text=True, check=True).stdout
    assert found.strip() == command[1].strip()
    assert 'eval "$command"' in script
