"""The steps of run_contrastive.py, where a whole run would say too little."""

from pathlib import Path

import pytest
from samples import make_rows

from modeling_cue.training.arguments import parse_arguments
from modeling_cue.training.feature_files import FeatureCacheError
from modeling_cue.training.frozen import cache_folder
from modeling_cue.training.pipeline import build_model, build_trainer, load_data


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


def test_without_an_encoder_the_error_says_what_to_name(folder):
    arguments = parse_arguments(["--dataset_name", str(folder), "--output_dir", "unused"])
    rows = load_data(arguments[1], arguments[0])
    with pytest.raises(ValueError, match="set text_encoder and image_encoder"):
        build_model(*arguments, rows)


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
