"""The steps of run_contrastive.py, where a whole run would say too little."""

from pathlib import Path

import pytest
import torch
from samples import make_rows
from trainers import steps
from transformers import AutoModel

from modeling_cue.training.building import build_model
from modeling_cue.training.feature_files import FeatureCacheError
from modeling_cue.training.frozen import cache_folder
from modeling_cue.training.parsing import parse_arguments
from modeling_cue.training.pipeline import announce, build_trainer, load_data
from modeling_cue.training.rows import DataError


@pytest.fixture
def folder(tmp_path):
    rows = make_rows(("image", "audio"), count=4)
    for split in ("train", "validation", "test"):
        named = rows.map(lambda row, split=split: {"id": f"{split} {row['id']}"})
        named.to_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


def columns(folder, *flags):
    model, data, _ = parse_arguments(["--dataset_name", str(folder), "--output_dir", "unused", *flags])
    return set(load_data(data, model).train.column_names) & {"image", "audio", "video"}


def test_media_that_the_model_lacks_are_not_read(folder):
    assert columns(folder, "--text_encoder", "t", "--image_encoder", "i") == {"image"}
    assert columns(folder, "--text_encoder", "t", "--audio_encoder", "a") == {"audio"}


def test_the_media_of_a_checkpoint(folder, tmp_path_factory, model):
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    model.config.save_pretrained(checkpoint)
    expected = {"image", "audio"} & set(model.config.modalities)
    assert columns(folder, "--model_name_or_path", str(checkpoint)) == expected


def test_data_in_one_piece_is_cut_as_asked(tmp_path):
    make_rows(("image",)).to_parquet(tmp_path / "all.parquet")
    flags = ["--dataset_name", str(tmp_path / "all.parquet"), "--output_dir", "unused", "--image_encoder", "i"]
    with pytest.raises(ValueError, match="no split 'validation'.*--split_sizes"):
        model, data, _ = parse_arguments(flags)
        load_data(data, model)
    model, data, _ = parse_arguments([*flags, "--split_sizes", "1", "2"])
    rows = load_data(data, model)
    assert [len(rows.train), len(rows.validation), len(rows.test)] == [3, 1, 2]


def test_pixels_wait_for_their_step_as_bytes(folder, names, tmp_path):
    encoders = [f"--{modality}_encoder={name}" for modality, name in names.items()]
    trainer = steps(folder, tmp_path / "run", *encoders, "--freeze", "none", "--contrastive_batch_size", "4",
                    "--per_device_train_batch_size", "2")  # fmt: skip
    chunks = next(iter(trainer.get_train_dataloader()))["chunks"]
    assert [batch["model"]["pixel_values"].dtype for batch in chunks.batches] == [torch.uint8] * 2
    for inputs in trainer.get_eval_dataloader():
        assert inputs["model"]["pixel_values"].dtype == torch.float32


def test_model_and_processor_agree_on_frames(folder, names):
    flags = [f"--{modality}_encoder={name}" for modality, name in names.items()]
    arguments = parse_arguments(["--dataset_name", str(folder), "--output_dir", "unused", "--num_frames", "3", *flags])
    model, processor = build_model(*arguments, load_data(arguments[1], arguments[0]))
    assert model.config.num_frames == processor.num_frames == 3


def test_an_adapter_loads_from_anywhere_goes_on_and_gives_way_to_a_whole_model(
    folder, names, tmp_path_factory, monkeypatch
):
    output = tmp_path_factory.mktemp("lora")
    monkeypatch.chdir(output)
    towers = ("--text_encoder", names["text"], "--image_encoder", names["image"], "--projection_dim", "16")
    trainer = steps(folder, "out", *towers, "--lora_rank", "2")
    text = trainer.processing_class(text="a dog")
    with torch.no_grad():
        expected = trainer.model.eval()(**text).text_embeds
        monkeypatch.chdir(folder)  # another place than that of the run
        assert torch.equal(AutoModel.from_pretrained(output / "out").eval()(**text).text_embeds, expected)
        on = steps(
            folder, output / "on", "--model_name_or_path", output / "out", "--lora_rank", "2", "--freeze", "text"
        )
        assert torch.equal(on.model.eval()(**text).text_embeds, expected)

        merged = steps(folder, output / "out", *towers, "--lora_rank", "2", "--lora_merge", "true", "--seed", "1")
        assert not (output / "out" / "base").exists()
        found = AutoModel.from_pretrained(output / "out").eval()(**text).text_embeds
        assert torch.equal(found, merged.model.eval()(**text).text_embeds)
        assert not torch.equal(found, expected)


def test_a_checkpoint_decides_on_its_shape(folder, names, model, processor, tmp_path_factory, caplog):
    output = tmp_path_factory.mktemp("cue")
    model.save_pretrained(output / "cue")
    processor.save_pretrained(output / "cue")
    flags = ("--model_name_or_path", output / "cue", "--projection_dim", "99", "--freeze", "text")
    assert steps(folder, output / "out", *flags).model.config.projection_dim == 16
    assert "the checkpoint that model_name_or_path names decides: projection_dim" in caplog.text
    for name, reason in ((names["text"], "is no CUE: give a folder or repo"), ("/no/where", "could not be loaded")):
        with pytest.raises(ValueError, match=f"model_name_or_path={name!r} {reason}"):
            steps(folder, output / "out", "--model_name_or_path", name)


def test_towers_without_data_and_the_best_model_without_images_are_told(folder, names, tmp_path, caplog):
    towers = ("--text_encoder", names["text"], "--audio_encoder", names["audio"], "--image_encoder", names["image"])
    trainer = steps(folder, tmp_path / "out", *towers, "--video_encoder", "image")
    assert "no column of video: that part of the model is neither trained nor evaluated" in caplog.text
    assert trainer.args.metric_for_best_model == "rsum"
    trainer = steps(folder, tmp_path / "out", *towers[:4])
    assert trainer.args.metric_for_best_model == "t2a_R@1"
    assert "rsum needs text and images" in caplog.text


def test_an_adapter_is_not_shared_without_its_base():
    flags = ["--push_to_hub", "true", "--lora_rank", "2", "--output_dir", "unused"]
    with pytest.raises(ValueError, match="--lora_merge true"):
        parse_arguments(flags)
    # No checkpoint may put its adapter beside the merged model.
    assert parse_arguments([*flags, "--lora_merge", "true"])[2].hub_strategy == "end"


def test_without_an_encoder_the_error_says_what_to_name_before_data_are_loaded():
    model, data, _ = parse_arguments(["--dataset_name", "not/there", "--output_dir", "unused"])
    with pytest.raises(ValueError, match="set text_encoder and image_encoder"):
        load_data(data, model)


def test_texts_are_no_longer_than_the_tower_has_places(folder, names):
    flags = ["--dataset_name", str(folder), "--output_dir", "unused", "--text_encoder", names["text"]]
    model, data, training = parse_arguments([*flags, "--max_text_length", "5000"])
    with pytest.raises(
        ValueError, match=r"max_text_length=5000 is not valid: the text tower has places for \d+ tokens"
    ):
        build_model(model, data, training, None)


def parsed(*flags):
    return parse_arguments(["--output_dir", "unused", *flags])[1]


def test_where_features_of_frozen_towers_are_kept(model, monkeypatch, caplog):
    monkeypatch.setattr("modeling_cue.training.frozen.HF_ASSETS_CACHE", "/assets")
    model.freeze(["text"])
    assert cache_folder(model, parsed(), True) is None  # some towers frozen: only where a folder is named
    assert cache_folder(model, parsed("--feature_cache", "here"), True) == Path("here")
    model.freeze(["image", "audio"])
    assert cache_folder(model, parsed(), True) == Path("/assets/cue/features")
    assert cache_folder(model, parsed("--feature_cache", "none"), True) is None
    assert not caplog.messages
    for flags in ([], ["--feature_cache", "here"]):
        assert cache_folder(model, parsed("--streaming", "true", *flags), True) is None
        assert len(caplog.messages) == 1
        assert "a stream has no rows to come back to" in caplog.messages[0]
        caplog.clear()
    assert cache_folder(model, parsed("--streaming", "true"), False) is None
    assert not caplog.messages  # of several processes, one says it


def test_a_cache_without_a_frozen_tower_says_so(model, caplog):
    assert cache_folder(model, parsed("--feature_cache", "here"), True) is None
    assert "no tower is frozen" in caplog.messages[0]


@pytest.mark.parametrize("named", [True, False])
def test_a_cache_that_cannot_be_written_stops_only_who_asked_for_it(
    folder, encoders, tmp_path, named, monkeypatch, caplog
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("modeling_cue.training.frozen.HF_ASSETS_CACHE", str(tmp_path / "file"))
    flags = [
        "--text_encoder",
        str(encoders["bert"]),
        "--image_encoder",
        str(encoders["clip"]),
        "--projection_dim",
        "8",
    ]
    flags += ["--freeze", "text", "image", "--use_cpu", "true", "--dataset_name", str(folder)]
    flags += ["--feature_cache", str(tmp_path / "file")] if named else []
    arguments = parse_arguments(["--output_dir", str(tmp_path / "out"), *flags])
    rows = load_data(arguments[1], arguments[0])
    model, processor = build_model(*arguments, rows)
    if named:
        with pytest.raises(FeatureCacheError, match="name a folder that you may write to"):
            build_trainer(model, processor, rows, *arguments[1:])
        return
    trainer = build_trainer(model, processor, rows, *arguments[1:])
    assert trainer.data_collator.features is None
    assert "the frozen towers run each time" in caplog.messages[-1]


def seen_in(epoch, pairs, collator):
    pairs.set_epoch(epoch)
    return collator([pairs[0]])["model"]["pixel_values"]


def test_training_sees_random_parts_of_images_and_evaluation_the_whole(folder, encoders, tmp_path):
    flags = ["--text_encoder", str(encoders["bert"]), "--image_encoder", str(encoders["clip"])]
    flags += ["--projection_dim", "8", "--random_crop_scale", "0.3"]
    trainer = steps(folder, tmp_path / "out", *flags)
    seen = {True: trainer.data_collator, False: trainer.eval_collator}
    for random, collator in seen.items():
        first, second = (seen_in(epoch, trainer.train_dataset, collator) for epoch in range(2))
        assert first.shape == second.shape
        assert torch.equal(first, second) != random
    # What is cached is the whole image.
    cached = [*flags, "--freeze", "image", "--feature_cache", tmp_path / "features"]
    with pytest.raises(ValueError, match="random_crop_scale=0.3: the features of the frozen image tower are cached"):
        steps(folder, tmp_path / "other", *cached)


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(folder, names, tmp_path):
    flags = ["--dataset_name", str(folder), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    (tmp_path / "checkpoint-6").mkdir()
    _, data, training = parse_arguments([*flags, "--text_encoder", names["text"]])
    with pytest.raises(DataError, match="holds checkpoints of an earlier run.*--resume_from_checkpoint last"):
        announce(flags, data, training)
    for further in (["--resume_from_checkpoint", "last"], ["--train_split", "none", "--model_name_or_path", "x"]):
        _, data, training = parse_arguments([*flags, *further])
        announce(flags, data, training)


def test_an_earlier_run_and_a_split_that_is_trained_on_are_warned_of(folder, names, tmp_path, caplog):
    flags = ["--dataset_name", str(folder), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    flags += ["--text_encoder", names["text"], "--image_encoder", names["image"]]
    (tmp_path / "run.json").write_text("{}")
    model, data, training = parse_arguments([*flags, "--validation_split", "none", "--test_split", "train"])
    announce(flags, data, training)
    assert "holds an earlier run, whose model and results this one replaces" in caplog.text
    load_data(data, model)
    assert "the split 'train' is trained on and evaluated on" in caplog.text
    caplog.clear()
    model, data, training = parse_arguments([*flags, "--resume_from_checkpoint", "last"])
    announce(flags, data, training)
    load_data(data, model)
    assert not caplog.text
