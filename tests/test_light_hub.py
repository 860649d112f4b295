"""Light checkpoints on a loopback Hub: pushed, fetched, kept in the cache, pinned to a revision, refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from strangers import assert_same, run

pytestmark = pytest.mark.hub
TOWERS = {"bert": "org/text", "clip": "org/image", "whisper": "org/audio"}
PUSH = """
import sys, torch
from modeling_cue import CUEModel, CUEProcessor
torch.manual_seed(0)
names = {"text": "org/text", "image": "org/image", "audio": "org/audio", "video": "image"}
model = CUEModel.from_encoders(**names, projection_dim=16, num_frames=3, composition_dim=16)
for part in (model, CUEProcessor.from_encoders(**names, num_frames=3, text_prefix="the ")):
    part.push_to_hub("org/cue", **({"towers": "reference"} if part is model else {}))
model.save_pretrained(sys.argv[1], towers="reference")
"""
REFUSE = """
import json, sys
from modeling_cue import CUEModel
found = {}
for case, options in json.loads(sys.argv[1]).items():
    folder = options.pop("folder")
    try:
        CUEModel.from_pretrained(folder, **options)
        found[case] = "loaded"
    except (ValueError, OSError) as error:
        found[case] = str(error)
print(json.dumps(found))
"""


def script(code, *arguments, **environment):
    """What a process of its own prints, with the package on its path and no setting of this one's Hub."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], capture_output=True,
        env=env | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def hub(hub_tools, encoders, tmp_path_factory):
    """A Hub with towers and the light checkpoint `org/cue`; the same checkpoint as a folder."""
    folder = tmp_path_factory.mktemp("hub")
    for family, name in TOWERS.items():
        shutil.copytree(encoders[family], folder / "seed" / "models" / name)
    with hub_tools.HubSim(folder / "hub") as hub:
        hub.store.seed(folder / "seed")
        script(PUSH, folder / "light", **hub.env(home=folder / "home"))
        yield hub, folder / "light"


def with_source(light, folder, **changes):
    shutil.copytree(light, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tower_sources"]["text"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return {"folder": str(folder)}


def test_strangers_fetch_the_towers_once_and_need_no_hub_again(hub, pair, tmp_path):
    hub, light = hub
    config = json.loads((light / "config.json").read_text())
    heads = {repo["id"]: repo["commits"][repo["refs"]["refs/heads/main"]] for repo in hub.store.repos.values()}
    for family, modality in (("bert", "text"), ("clip", "image"), ("whisper", "audio")):
        source = config["tower_sources"][modality]
        assert source["name"] == TOWERS[family]
        assert source["revision"] == hub.store.repos[f"models/{source['name']}"]["refs"]["refs/heads/main"]
    assert heads["org/cue"]["files"]["model.safetensors"]["size"] == (light / "model.safetensors").stat().st_size
    # The towers move on: what the checkpoint names is a commit.
    repo = hub.store.get("models", "org/text")
    files = dict(repo["commits"][repo["refs"]["refs/heads/main"]]["files"])
    files.pop("model.safetensors")
    hub.store.commit_files(repo, "refs/heads/main", files, "weights are taken away")

    _, _, folder, expected = pair
    for name in ("image.npy", "wave.npy"):
        shutil.copy(folder / name, tmp_path / name)
    environment = hub.env()
    run("org/cue", tmp_path, "model first", HF_HUB_OFFLINE="0", **environment)
    assert_same(torch.load(tmp_path / "found.pt"), expected)
    asked = len(hub.log)
    (tmp_path / "found.pt").unlink()
    run("org/cue", tmp_path, "model first", **environment)
    assert len(hub.log) == asked
    for file in ("found.pt", "found_again.pt"):
        assert_same(torch.load(tmp_path / file), expected)


def test_what_cannot_be_fetched_is_told(hub, tmp_path):
    hub, light = hub
    hub.store.create("models", "org/secret", private=True)
    gone = "0" * 40
    cases = {
        "fine": {"folder": str(light), "cache_dir": str(tmp_path / "cache")},
        "unknown": with_source(light, tmp_path / "unknown", name="org/none"),
        "revision": with_source(light, tmp_path / "revision", revision=gone),
        "rights": with_source(light, tmp_path / "rights", name="org/secret"),
        "offline": {"folder": str(light), "cache_dir": str(tmp_path / "empty"), "local_files_only": True},
    }
    environment = hub.env(home=tmp_path / "home", token=None)
    found = json.loads(script(REFUSE, json.dumps(cases), **environment).splitlines()[-1])
    assert found.pop("fine") == "loaded"
    assert {path.name for path in (tmp_path / "cache").glob("models--*")} == {
        f"models--{name.replace('/', '--')}" for name in TOWERS.values()
    }
    revision = json.loads((light / "config.json").read_text())["tower_sources"]["text"]["revision"]
    expected = {
        "unknown": (f"'org/none' at revision {revision}", "not a valid model identifier"),
        "revision": (f"'org/text' at revision {gone}", f"{gone} is not a valid git identifier"),
        "rights": (f"'org/secret' at revision {revision}", "pass a token"),
        "offline": (f"'org/text' at revision {revision}", "couldn't find them in the cached files"),
    }
    for case, parts in expected.items():
        assert "this is a light checkpoint, which needs its text tower from" in found[case], case
        for part in (*parts, "a checkpoint saved with towers='whole' needs none of these"):
            assert part in found[case].replace("\n", " "), (case, found[case])
