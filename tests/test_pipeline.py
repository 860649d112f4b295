"""The steps of run_contrastive.py, where a whole run would say too little."""

import pytest
from samples import make_rows

from modeling_cue.training.arguments import parse_arguments
from modeling_cue.training.pipeline import build_model, load_data


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


def test_model_and_processor_agree_on_frames(folder, names):
    flags = [f"--{modality}_encoder={name}" for modality, name in names.items()]
    arguments = parse_arguments(["--dataset_name", str(folder), "--output_dir", "unused", "--num_frames", "3", *flags])
    model, processor = build_model(*arguments, load_data(arguments[1], arguments[0]))
    assert model.config.num_frames == processor.num_frames == 3


def test_without_an_encoder_the_error_says_what_to_name(folder):
    arguments = parse_arguments(["--dataset_name", str(folder), "--output_dir", "unused"])
    rows = load_data(arguments[1], arguments[0])
    with pytest.raises(ValueError, match="set text_encoder and image_encoder"):
        build_model(*arguments, rows)
