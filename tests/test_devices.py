"""Many devices: settings for Accelerate, two processes under DDP and FSDP, uneven batches, and a process that dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from devices_worker import losses, train
from tiny import inputs_of
from torch.utils.data import Subset
from trainers import make_trainer
from transformers import AutoModel

from modeling_cue import CUEModel
from modeling_cue.training.arguments import CUETrainingArguments
from modeling_cue.training.sharding import layer_names

HERE = Path(__file__).parent
SETTINGS = HERE.parent / "configs" / "accelerate"
# A few steps of tiny towers hardly move the radii.
pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")


@pytest.mark.parametrize("path", sorted(SETTINGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_is_one_that_accelerate_knows(path):
    config = load_config_from_file(str(path))  # refuses unknown keys, but not those of FSDP
    assert isinstance(config, ClusterConfig)
    assert config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "no"  # the recipe's bf16 decides
    flags = vars(launch_command_parser().parse_args(["--config_file", str(path), "run_contrastive.py"]))
    assert set(config.fsdp_config) <= set(flags)


def launch(settings: str, folder: Path, encoders: dict[str, Path], *cases: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(SETTINGS / settings)]
    command += ["--num_processes", "2", str(HERE / "devices_worker.py"), str(folder), str(encoders["bert"].parent)]
    return subprocess.run([*command, *cases], env=environment, capture_output=True, text=True, timeout=550)


def found(settings: str, folder: Path, encoders: dict[str, Path], *cases: str) -> dict:
    done = launch(settings, folder, encoders, *cases)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text()) | {"folder": folder}


@pytest.fixture(scope="module")
def ddp(encoders, tmp_path_factory):
    return found(
        "cpu_2.yaml", tmp_path_factory.mktemp("ddp"), encoders, "plain", "uneven", "chunks", "bf16", "checkpointed"
    )


@pytest.fixture(scope="module")
def fsdp(encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    return found("fsdp2.yaml", folder, encoders, "plain", "chunks", "bf16", "checkpoints", "unalike")


# A batch that processes cannot fill alike takes on rows of the start of the epoch.
ITEMS = {"plain": None, "uneven": [*range(10), 0, 1], "chunks": None, "checkpointed": None}


@pytest.mark.parametrize("case", ITEMS)
def test_two_processes_train_as_one(ddp, names, tmp_path, case):
    size = {"per_device_train_batch_size": 4, "contrastive_batch_size": None}
    one = losses(train(case, names, tmp_path, ITEMS[case], **size))
    assert len(set(one)) == 3
    assert ddp[case]["losses"] == pytest.approx(one, rel=1e-5)


def test_bf16_in_two_processes(ddp):
    assert ddp["bf16"]["losses"] != ddp["chunks"]["losses"]
    assert ddp["bf16"]["losses"] == pytest.approx(ddp["chunks"]["losses"], rel=0.03)


@pytest.mark.parametrize("case", ["plain", "chunks", "bf16"])
def test_fsdp_trains_as_ddp(ddp, fsdp, case):
    assert ddp[case]["layer"] == "BertLayer"
    assert fsdp[case]["layer"] == "FSDPBertLayer"
    assert fsdp[case]["losses"] == pytest.approx(ddp[case]["losses"], rel=1e-5)


def test_fsdp_saves_the_whole_model(ddp, fsdp):
    folders = [run["folder"] / "plain" for run in (ddp, fsdp)]
    one, other = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert one == other
    one, other = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert one == other
    one, other = (AutoModel.from_pretrained(folder).state_dict() for folder in folders)
    far = {name: (other[name] - tensor).abs().max().item() for name, tensor in one.items()}
    # What is added to all scores of a softmax alike does nothing, its gradient is rounding alone, and Adam makes steps
    # of that: any value is the same model.
    idle = {name for name in far if name.endswith("pooler.score.bias")}
    assert idle
    assert {name: value for name, value in far.items() if value > 3e-5 and name not in idle} == {}


def test_fsdp_goes_back_to_the_best_checkpoint_and_on_from_one(fsdp):
    case = fsdp["checkpoints"]
    assert max(case["scores"]) > case["scores"][-1]
    assert case["best"] == pytest.approx(max(case["scores"]), rel=1e-6)
    assert case["again"][-1] == pytest.approx(case["losses"][-1], rel=1e-5)
    assert case["losses"] == pytest.approx(fsdp["plain"]["losses"], rel=1e-5)


def test_a_stream_is_evaluated_by_processes_with_unlike_numbers_of_batches(ddp, fsdp):
    for run in (ddp, fsdp):
        whole, streamed = run["plain"]["evaluated"]
        assert streamed == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2_layer", "hubert", "whisper"])
def test_fsdp_shards_only_modules_that_are_called(encoders, family):
    model = CUEModel.from_encoders(audio=str(encoders[family]), projection_dim=8, composition_dim=8)
    called = set()
    for module in model.audio_tower.modules():
        module.register_forward_pre_hook(lambda module, _: called.add(module))
    model(**inputs_of(family))
    names = layer_names(model)
    assert any("EncoderLayer" in name for name in names)
    assert all(module in called for module in model.audio_tower.modules() if type(module).__name__ in names)


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_every_process_evaluates_equally_many(model, processor, tmp_path, monkeypatch, rows):
    trainer = make_trainer(model, processor, tmp_path)
    shares = []
    for rank in range(8):
        monkeypatch.setattr(CUETrainingArguments, "world_size", 8)
        monkeypatch.setattr(CUETrainingArguments, "process_index", rank)
        shares.append(list(trainer.get_eval_dataloader(Subset(trainer.eval_dataset, range(rows))).sampler))
    assert {len(share) for share in shares} == {1}
    assert {row for share in shares for row in share} == set(range(rows))


def test_fsdp_refuses_processes_that_would_wait_for_one_another(fsdp):
    assert fsdp["unalike"].startswith("some processes have pixel_values in this batch and others have not")
    assert "configs/accelerate/ddp.yaml" in fsdp["unalike"]


def test_when_a_process_dies_the_others_end(encoders, tmp_path):
    done = launch("cpu_2.yaml", tmp_path, encoders, "dies")
    waited = time.time() - float((tmp_path / "died").read_text())
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stderr
    assert waited < 60
