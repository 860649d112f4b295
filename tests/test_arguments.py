"""Arguments: flags over file, clear errors, and the defaults that the recipe promises."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from modeling_cue.training import arguments
from modeling_cue.training.parsing import ArgumentsError, is_demo, parse_arguments, plain_errors

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def write(folder: Path, text: str) -> str:
    (folder / "c.yaml").write_text(text)
    return str(folder / "c.yaml")


def test_flags_win_over_the_file(tmp_path):
    path = write(tmp_path, "learning_rate: 5e-4\nprojection_dim: 64\nfreeze: [text]\nstreaming: true\n")
    model, data, training = parse_arguments([path, "--projection_dim", "32", "--output_dir", str(tmp_path)])
    assert (model.projection_dim, training.learning_rate, model.freeze, data.streaming) == (32, 5e-4, ["text"], True)


def test_the_seeds_defaults():
    model, data, training = parse_arguments(["--output_dir", "unused"])
    assert training.per_device_train_batch_size == 32
    assert training.learning_rate == 5e-5
    assert training.weight_decay == 0.01
    assert training.num_train_epochs == 3
    assert "adamw" in training.optim.value
    assert training.metric_for_best_model == "rsum"
    assert training.greater_is_better
    assert data.captions_per_image == "1"
    assert model.lora_rank == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_of_the_repo_parses(path):
    model, data, training = parse_arguments([str(path), "--bf16", "false"])
    written = yaml.safe_load(path.read_text())
    for name in {"projection_dim", "dataset_name", "output_dir"} & set(written):
        assert written[name] in (getattr(owner, name, None) for owner in (model, data, training))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "no argument is called 'learning_rat'; did you mean learning_rate"),
        ("qqqqqq: 1", "no argument is called 'qqqqqq'; run_contrastive.py --help lists them all"),
        ("- a\n- b\n", "must hold lines of the form 'name: value'; it holds list"),
        ("a: [1, 2", "is not valid YAML"),
        ("a: !!python/object/apply:os.system ['echo']", "is not valid YAML"),
        ("captions_per_image: 3", "captions_per_image='3' is not valid; it must be 1 or all"),
        ("whole_parts: 1.5", "whole_parts=1.5 is not valid"),
        ("phrases_per_caption:", "gives phrases_per_caption nothing, which it cannot be: give a value"),
        ("learning_rate: [1e-3]", "gives learning_rate a list, which it cannot be"),
        ("random_crop_scale: 0", "random_crop_scale=0.0 is not valid"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size=0 is not valid; it must be 1 or more"),
        ("on_bad_row: ignore", "on_bad_row='ignore' is not valid; it must be raise or skip"),
        ("feature_dtype: int8", "it must be float32 or float16"),
        ("freeze: [smell]", "freeze: 'smell' is not valid; it must be text, image, audio, video or none"),
        ("containment_weight: -1", "containment_weight=-1.0 is not valid; it must be zero or more"),
        ("train_split: none", "train_split is none: name the checkpoint to evaluate"),
        ("train_split: none\nmodel_name_or_path: x\nlora_rank: 2", "leave out push_to_hub, resume_from_checkpoint"),
        (
            "train_split: none\nmodel_name_or_path: x\nvalidation_split: none\ntest_split: none",
            "name the split to evaluate",
        ),
        ("split_sizes: [10]", "split_sizes=[10] is not valid; it must be two numbers"),
        ("split_sizes: ten one", "split_sizes=['ten', 'one'] is not valid; it must be two numbers"),
        ("phrases_per_caption: -1", "it must be zero or more"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        parse_arguments([write(tmp_path, text)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "demo"),
    [
        ("", True),
        ("--max_steps 2", True),
        ("demo.yaml", False),
        ("--dataset_name d", False),
        ("--dataset-name=d", False),
    ],
)
def test_without_a_file_and_without_data_it_is_the_demo(line, demo):
    assert is_demo(line.split()) is demo


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match=r"no configuration file 'nowhere\.yaml'; the ones that come with CUE"):
        parse_arguments(["nowhere.yaml"])


def test_an_unknown_flag():
    with pytest.raises(ValueError, match="--smell"):
        parse_arguments(["--smell", "1"])


def test_a_file_may_hold_a_list_as_the_command_line_does(tmp_path):
    model, data, _ = parse_arguments([write(tmp_path, "freeze: text image\nsplit_sizes: 10 20\nsigned_sqrt:\n")])
    assert (model.freeze, data.split_sizes, model.signed_sqrt) == (["text", "image"], [10, 20], [])


@pytest.mark.parametrize("flags", [["--eval_strategy", "no"], ["--save_strategy", "no"], ["--save_strategy", "steps"]])
def test_the_best_checkpoint_is_none_where_none_is_measured(tmp_path, flags, caplog):
    _, _, training = parse_arguments([*flags, "--output_dir", str(tmp_path), "--image_encoder", "i"])
    assert not training.load_best_model_at_end
    assert "load_best_model_at_end is off: with eval_strategy=" in caplog.text


def test_none_takes_back_what_the_file_freezes(tmp_path):
    model, data, _ = parse_arguments(
        [write(tmp_path, "freeze: [text]\nfeature_cache: cache\n"), "--freeze", "none", "--feature_cache", "none"]
    )
    assert model.freeze == []
    assert data.feature_cache == "none"  # which is not the same as not given


def test_workers_by_default_and_as_given(monkeypatch):
    def workers(*flags):
        return parse_arguments(["--output_dir", "unused", "--use_cpu", "true", *flags])[2]

    monkeypatch.setattr(arguments, "spare_cores", lambda on_cpu: 6)
    chosen = workers()
    assert (chosen.dataloader_num_workers, chosen.dataloader_persistent_workers) == (6, True)
    chosen.limit_workers(1)
    assert (chosen.dataloader_num_workers, chosen.dataloader_persistent_workers) == (1, True)
    chosen.limit_workers(0)
    assert (chosen.dataloader_num_workers, chosen.dataloader_persistent_workers) == (0, False)
    given = workers("--dataloader_num_workers", "3", "--dataloader_persistent_workers", "false")
    given.limit_workers(0)
    assert (given.dataloader_num_workers, given.dataloader_persistent_workers) == (3, False)
    monkeypatch.setattr(arguments, "spare_cores", lambda on_cpu: 0)
    assert workers().dataloader_num_workers == 0
    asked = workers("--dataloader_prefetch_factor", "4")
    assert (asked.dataloader_num_workers, asked.dataloader_prefetch_factor) == (1, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="cores of a process are counted by Linux")
def test_spare_cores(monkeypatch):
    for cores, processes, on_cpu, spare in ((2, 1, True, 0), (2, 1, False, 1), (16, 2, False, 7), (64, 1, True, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert arguments.spare_cores(on_cpu) == spare


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "no labels to smooth; leave it at 0.0"),
        ({"remove_unused_columns": True}, "the collator needs every column"),
        ({"bf16_full_eval": True}, "evaluation runs as training does: set bf16"),
        ({"max_steps": 0}, "to evaluate without training, set train_split to none"),
        ({"do_predict": True}, "the test split is read where test_split names one"),
        (
            {"contrastive_weight": 0.0, "containment_weight": 0.0, "composition_weight": 0.0},
            "nothing would be learned",
        ),
        ({"metric_for_best_model": "loss"}, "evaluation measures no loss"),
        ({"auto_find_batch_size": True, "contrastive_batch_size": 64}, "would make contrastive_batch_size smaller"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True"),
        ({"accelerator_config": {"even_batches": False}}, "even_batches=False"),
    ],
)
def test_what_would_be_ignored_or_break_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        arguments.CUETrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


def test_what_is_better_lower_is_known(tmp_path):
    for metric, higher in (("rsum", True), ("t2i_median_rank", False), ("containment_ece_p2c", False)):
        found = arguments.CUETrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric)
        assert found.greater_is_better is higher
    assert found.accelerator_config.dispatch_batches is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freze", "text"], "no flag is called '--freze'; did you mean --freeze"),
        (["--epochs", "3"], "no flag is called '--epochs'; did you mean --num_train_epochs?"),
        (["--batch-size=3"], "did you mean --per_device_train_batch_size?"),
        (["--seed", "1", "configs/demo.yaml"], "the configuration file comes first: run_contrastive.py configs/demo"),
        (["--seed", "1", "2"], "nothing is asked for by '2'"),
    ],
)
def test_a_flag_that_nobody_knows_is_named_with_the_nearest(flags, message):
    with pytest.raises(ArgumentsError, match=message):
        parse_arguments(["--bf16", "false", *flags])


def test_mistakes_end_a_script_without_a_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_contrastive.py"])
    with pytest.raises(SystemExit, match="run_contrastive.py: no flag is called '--lrr'"), plain_errors():
        parse_arguments(["--lrr", "1"])
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError  # what is no mistake of the user's keeps its traceback
