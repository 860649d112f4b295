"""The switches for small memory, each by its effect: never by a flag that was parsed."""

import pytest
import torch
from samples import make_rows
from trainers import make_trainer, saved_bytes

from modeling_cue import CUEModel
from modeling_cue.training import row_forms
from modeling_cue.training.data import load_rows

# A few steps of tiny towers hardly move the radii.
pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")


def activations(model, trainer, count: int) -> int:
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(count)])
    model.train()
    with saved_bytes() as kept:
        loss = trainer.compute_loss(model, batch)
    total = sum(size for pointer, size in kept.items() if pointer not in weights)
    loss.backward()
    return total


def test_a_smaller_batch_keeps_less(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    assert activations(model, trainer, 2) < 0.5 * activations(model, trainer, 8)


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_activation_checkpointing_keeps_less(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    plain = activations(model, trainer, 8)
    model.activation_checkpointing_enable()
    assert activations(model, trainer, 8) < 0.7 * plain


def test_frozen_towers_keep_nothing(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    plain = activations(model, trainer, 8)
    model.freeze(["text", "image"])
    assert activations(model, trainer, 8) < 0.5 * plain
    frozen = [*model.text_tower.parameters(), *model.image_tower.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in model.text_head.parameters() if p.requires_grad)


@pytest.fixture
def captions_read(monkeypatch):
    """The captions of the rows whose content is looked at."""
    seen = []
    plain = row_forms.captions_of
    monkeypatch.setattr(row_forms, "captions_of", lambda value: seen.append(value) or plain(value))
    return seen


@pytest.mark.parametrize("streaming", [False, True])
def test_limited_data_reads_no_more_rows(tmp_path, captions_read, streaming):
    make_rows(count=20).to_parquet(tmp_path / "train.parquet")
    rows = load_rows(str(tmp_path), "train", streaming=streaming, max_samples=3)
    assert len(list(rows)) == len(captions_read) == 3


def test_a_stream_reads_a_row_when_it_is_taken(tmp_path, captions_read):
    make_rows(count=20).to_parquet(tmp_path / "train.parquet")
    rows = iter(load_rows(str(tmp_path), "train", streaming=True))
    before = len(captions_read)
    for taken in range(1, 4):
        next(rows)
        assert len(captions_read) - before == taken


def test_mixed_precision_reaches_the_towers_and_not_the_cones(model, processor, tmp_path):
    seen = []

    def spy(module, inputs, output):
        seen.append(output.dtype)

    trainer = make_trainer(model, processor, tmp_path, max_steps=1, bf16=True)
    model.text_tower.encoder.layer[0].intermediate.dense.register_forward_hook(spy)
    cones = []
    model.text_head.register_forward_hook(
        lambda module, inputs, cone: cones.append((cone.axis.dtype, cone.radius.dtype))
    )
    trainer.train()
    assert seen == [torch.bfloat16]
    assert cones == [(torch.float32, torch.float32)]
    assert next(model.parameters()).dtype == torch.float32


def test_the_cache_is_cleared_every_n_steps(model, processor, tmp_path, monkeypatch):
    cleared = []
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda *a, **k: cleared.append(True))
    make_trainer(model, processor, tmp_path, max_steps=4, torch_empty_cache_steps=2).train()
    assert len(cleared) == 2


def test_lora_has_few_trainable_weights_and_states(encoders, tmp_path):
    from modeling_cue.training.lora import add_lora

    model = CUEModel.from_encoders(
        image=str(encoders["vit"]), text=str(encoders["bert"]), projection_dim=16, composition_dim=16
    )
    whole = sum(p.numel() for t in model.towers.values() for p in t.parameters())
    adapted = add_lora(model, rank=1, alpha=2, dropout=0.0, base=tmp_path)
    trained = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "_tower." in n)
    assert 0 < trained < 0.1 * whole
