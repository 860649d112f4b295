"""run_contrastive.py as a user runs it: the demo, local data, two processes, and the Flickr30k recipe from a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import make_rows
from transformers import AutoModel, AutoProcessor

import modeling_cue  # noqa: F401  (registers CUE with the Auto classes)

ROOT = Path(__file__).resolve().parents[1]
FAST = ["--max_steps", "2", "--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true"]
FAST += ["--dataloader_num_workers", "0", "--eval_strategy", "no", "--save_strategy", "no"]
FAST += ["--load_best_model_at_end", "false", "--bf16", "false"]


def run(*arguments, launcher=(), folder, **environment):
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | environment
    )
    command = [sys.executable, *map(str, launcher), str(ROOT / "run_contrastive.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def test_the_demo_for_two_steps(tmp_path):
    small = ["--max_train_samples", "40", "--max_eval_samples", "30", "--output_dir", "out"]
    printed = run(*FAST, *small, "--per_device_train_batch_size", "8", "--report_to", "tensorboard", folder=tmp_path)
    first = next(line for line in printed.splitlines() if line)
    assert "configs/flickr30k.yaml" in first
    assert "text -> image" in printed
    assert "results:" in printed
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))  # what --report_to tensorboard writes
    found = results(tmp_path / "out")
    for key in ("test_t2i_R@1", "test_a2i_R@10", "test_v2t_R@5", "test_rsum", "test_containment_auroc"):
        assert key in found
    assert found["test_unseen_text_queries"] > 0
    assert found["test_ceiling_t2i_R@1"] > 0.5
    assert AutoProcessor.from_pretrained(tmp_path / "out").num_frames == 2
    assert AutoModel.from_pretrained(tmp_path / "out").config.modalities == ("text", "image", "audio", "video")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 6), ("validation", 4), ("test", 5)):
        rows = make_rows(("image", "audio"), count=count)
        rows = rows.map(lambda row, split=split: {"id": f"{split} {row['id']}"})
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def towers(encoders):
    return ["--text_encoder", encoders["bert"], "--image_encoder", encoders["clip"], "--projection_dim", "16"]


def test_local_data_with_frozen_towers_and_a_cache(encoders, data, tmp_path):
    arguments = [*FAST, *towers(encoders), "--dataset_name", data, "--output_dir", "out", "--freeze", "text", "image"]
    arguments += ["--feature_cache", "cache", "--image_pooler", "attention", "--per_device_train_batch_size", "4"]
    run(*arguments, folder=tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 6
    trained = results(tmp_path / "out")
    assert trained["test_t2i_R@10"] == 1.0
    # Evaluated again, of data that has no other split, and nothing but the results is written.
    for split in ("train", "validation"):
        (data / f"{split}.parquet").unlink()
    arguments = ["--model_name_or_path", "out", "--dataset_name", data, "--output_dir", "again", "--use_cpu", "true"]
    printed = run(*arguments, "--train_split", "none", "--validation_split", "none", folder=tmp_path)
    assert "model:    out" in printed
    for name, value in results(tmp_path / "again").items():
        if name.startswith("test_") and not name.endswith(("runtime", "per_second")):
            assert value == pytest.approx(trained[name], abs=1e-4), name
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"all_results.json", "test_results.json"}


def test_without_validation_and_test(encoders, data, tmp_path):
    for split in ("validation", "test"):
        (data / f"{split}.parquet").unlink()
    arguments = [*towers(encoders), "--dataset_name", data, "--output_dir", "out", "--max_steps", "2"]
    arguments += ["--use_cpu", "true", "--dataloader_num_workers", "0", "--feature_cache", "none"]
    run(*arguments, "--validation_split", "none", "--test_split", "none", folder=tmp_path)
    assert not [name for name in results(tmp_path / "out") if name.startswith(("eval_", "test_"))]
    assert AutoModel.from_pretrained(tmp_path / "out").config.modalities == ("text", "image")
    # As many images of each as one says, none among them.
    run(*arguments, "--split_sizes", "2", "0", "--output_dir", "other", folder=tmp_path)
    assert "eval_rsum" in results(tmp_path / "other")


def test_two_processes_fill_the_cache_that_nobody_named(encoders, data, tmp_path):
    arguments = [*FAST, *towers(encoders), "--dataset_name", data, "--output_dir", "out", "--freeze", "text", "image"]
    arguments += ["--per_device_train_batch_size", "2", "--max_train_samples", "3", "--seed", "1"]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "accelerate" / "cpu_2.yaml"]
    home = {"HF_ASSETS_CACHE": str(tmp_path / "assets")}
    printed = run(*arguments, launcher=launcher, folder=tmp_path, **home)
    folder = tmp_path / "assets" / "cue" / "features"
    assert f"in {folder}" in printed
    assert len(list(folder.rglob("*.arrow"))) == 6
    first = results(tmp_path / "out")
    # The same run with its towers running gives the same numbers.
    printed = run(*arguments, "--feature_cache", "none", launcher=launcher, folder=tmp_path, **home)
    assert "features of frozen towers" not in printed
    for name, value in results(tmp_path / "out").items():
        if name.startswith("test_") and not name.endswith(("runtime", "per_second")):
            assert value == pytest.approx(first[name], abs=1e-4), name


def test_streaming_lora_and_merging(encoders, data, tmp_path):
    arguments = [*FAST, *towers(encoders), "--dataset_name", data, "--output_dir", "out", "--streaming", "true"]
    arguments += ["--lora_rank", "2", "--freeze", "text", "--lora_merge", "true", "--per_device_train_batch_size", "4"]
    run(*arguments, folder=tmp_path)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    names = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert not any("lora" in name for name in names)
    assert "test_rsum" in results(tmp_path / "out")


def test_resume_and_best_model(encoders, data, tmp_path):
    arguments = [*FAST, *towers(encoders), "--dataset_name", data, "--output_dir", "out"]
    arguments += ["--per_device_train_batch_size", "4", "--eval_strategy", "steps", "--eval_steps", "1"]
    arguments += ["--save_strategy", "steps", "--save_steps", "1", "--load_best_model_at_end", "true"]
    run(*arguments, folder=tmp_path)
    printed = run(*arguments, "--max_steps", "3", "--resume_from_checkpoint", "last", folder=tmp_path)
    assert printed.count("'loss'") == 1  # two of the three steps are not taken again
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert [log["step"] for log in state["log_history"] if "loss" in log] == [1, 2, 3]


def test_two_processes_measure_what_one_measures(encoders, data, tmp_path):
    arguments = [*FAST, *towers(encoders), "--dataset_name", data, "--learning_rate", "0", "--head_learning_rate", "0"]
    # Without dropout, so that the radii of texts start alike: at the mean of the first batch, in training.
    arguments += ["--captions_per_image", "all", "--freeze", "text", "image"]
    run(*arguments, "--output_dir", "one", "--per_device_train_batch_size", "4", folder=tmp_path)
    # `--cpu --num_processes 2` would start one process only.
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "accelerate" / "cpu_2.yaml"]
    printed = run(
        *arguments, "--output_dir", "two", "--per_device_train_batch_size", "2", launcher=launcher, folder=tmp_path
    )
    assert printed.count("results:") == 1
    # Six rows are two steps of four, of one process or of two; two alone would need three steps.
    epochs = [json.loads((tmp_path / n / "trainer_state.json").read_text())["epoch"] for n in ("one", "two")]
    assert epochs == [1.0, 1.0]
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    for name, value in one.items():
        if "_R@" in name or "containment" in name or "rsum" in name or "radius" in name:
            assert two[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.hub
@pytest.mark.parametrize("extra", [[], ["--streaming", "true"]])
def test_the_flickr30k_recipe_against_a_loopback_hub(encoders, hub_tools, tmp_path, extra):
    seed = tmp_path / "seed"
    for name, family in (("intfloat/e5-base-v2", "bert"), ("openai/clip-vit-base-patch32", "clip")):
        target = seed / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(encoders[family])
    repo = seed / "datasets" / "nlphuji" / "flickr30k"
    parquet = repo / "@refs" / "convert" / "parquet" / "TEST" / "test"
    parquet.mkdir(parents=True)
    (repo / "flickr30k.py").write_text("raise RuntimeError('a loading script, which nobody runs')\n")
    rows = make_rows(("image",), captions=2, count=18).remove_columns("id")
    splits = ["train"] * 10 + ["val"] * 4 + ["test"] * 4
    for name, values in {
        "split": splits,
        "img_id": [str(i) for i in range(18)],
        "filename": [f"{i}.jpg" for i in range(18)],
        "sentids": [[str(5 * i + k) for k in range(2)] for i in range(18)],
    }.items():
        rows = rows.add_column(name, values)
    rows.to_parquet(parquet / "0000.parquet")
    with hub_tools.HubSim(tmp_path / "hub") as hub:
        hub.store.seed(str(seed))
        environment = {**hub.env(home=tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        arguments = [ROOT / "configs" / "flickr30k.yaml", *FAST, "--output_dir", "out", "--projection_dim", "16"]
        arguments += ["--max_train_samples", "8", "--max_eval_samples", "4", "--per_device_train_batch_size", "4"]
        arguments += ["--push_to_hub", "true", "--hub_model_id", "org/cue", *extra]
        printed = run(*arguments, folder=tmp_path, **environment)
        assert "shared:   org/cue" in printed
        pull = "import modeling_cue; from transformers import AutoModel, AutoProcessor\n"
        pull += "p = AutoProcessor.from_pretrained('org/cue'); m = AutoModel.from_pretrained('org/cue')\n"
        pull += "print(p.text_prefix, m(**p(text='a dog')).text_embeds.shape)"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", pull], capture_output=True, text=True, timeout=300,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        # E5's habit came with its name.
        assert done.stdout.startswith("query: ")
    state = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert "test_rsum" in state
