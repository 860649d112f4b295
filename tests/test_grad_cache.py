"""Chunked contrastive batches: loss and gradients of the whole batch, dropout and all, in the memory of a chunk."""

import copy

import pytest
import torch
from samples import make_rows
from trainers import ALL, lively, make_trainer, saved_bytes

from modeling_cue import CUEModel
from modeling_cue.training.arguments import CUETrainingArguments
from modeling_cue.training.collator import CUECollator, EveryRowBroken
from modeling_cue.training.evaluation import embedded_kinds
from modeling_cue.training.grad_cache import ChunkedCollator, backward_in_chunks
from modeling_cue.training.lora import add_lora
from modeling_cue.training.losses import LossWeights, compute_losses, total_loss
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.relations import join
from modeling_cue.training.rows import BadRows

# A few steps of tiny towers hardly move the radii.
pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")
WEIGHTS = LossWeights(containment_moves_axes=True)


def loss_of(embedded, scalars):
    return total_loss(compute_losses(embedded, *scalars, WEIGHTS), WEIGHTS)


def embed_with(model, dtype=None):
    def embed(chunk):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output = model(**chunk["model"])
        return embedded_kinds(output, chunk), (output.logit_scale, output.containment_scale, output.containment_bias)

    return embed


def whole(model, chunks, dtype=None):
    """The slow reference: every chunk's graph is kept, and all are compared at once."""
    embed = embed_with(model, dtype)
    results = [embed(chunk) for chunk in chunks.batches]
    loss = loss_of(join([embedded for embedded, _ in results]), results[0][1])
    loss.backward()
    return loss.detach()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def chunked(processor, modalities=("image", "audio", "video"), size=2, rows=None):
    rows = make_rows(modalities) if rows is None else rows
    pairs = CaptionPairs(rows, every_caption=True)
    return ChunkedCollator(CUECollator(processor, ALL, 2), size)([pairs[i] for i in range(len(pairs))])["chunks"]


@pytest.mark.parametrize("case", ["plain", "checkpointed", "lora", "bf16", "frozen", "one chunk"])
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_gradients_are_those_of_the_whole_batch(names, processor, tmp_path, case):
    one = lively(names)
    if case == "checkpointed":
        one.activation_checkpointing_enable()
    elif case == "lora":
        one = add_lora(one, rank=2, alpha=4, dropout=0.3, base=tmp_path)
    elif case == "frozen":
        one.freeze(["text", "image"])
    two = copy.deepcopy(one)
    dtype = torch.bfloat16 if case == "bf16" else None
    chunks = chunked(processor, size=6 if case == "one chunk" else 2)

    torch.manual_seed(3)
    expected = whole(one, chunks, dtype)
    torch.manual_seed(3)
    found = backward_in_chunks(
        two, chunks, torch.device("cpu"), embed_with(two, dtype), loss_of, lambda loss: loss.backward()
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    theirs, ours = gradients(one), gradients(two)
    assert theirs.keys() == ours.keys()
    scale = torch.cat([g.flatten() for g in theirs.values()]).norm()
    for name, gradient in theirs.items():
        if case == "bf16":  # sums of bfloat16 gradients come in another order
            assert (ours[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-3 * scale, name
        else:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * scale.item(), msg=name)


def test_dropout_differs_between_chunks(names, processor):
    """Without the random states of the first pass the gradient is another one: the test above can fail."""
    one = lively(names)
    two = copy.deepcopy(one)
    chunks = chunked(processor)
    torch.manual_seed(3)
    whole(one, chunks)
    torch.manual_seed(4)
    whole(two, chunks)
    assert (one.text_head.projection.weight.grad - two.text_head.projection.weight.grad).norm() > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
def test_twenty_steps_are_those_of_the_plain_batch(names, processor, tmp_path, steps):
    logs = []
    for chunk, batch in ((4, None), (2, 4)):
        model = lively(names, dropout=0.0)
        trainer = make_trainer(
            model, processor, tmp_path, ("image", "audio"), per_device_train_batch_size=chunk, max_steps=20 // steps,
            contrastive_batch_size=batch, gradient_accumulation_steps=steps,
        )  # fmt: skip
        # All phrases in their order: chunks would draw others.
        for collator in (trainer.data_collator, getattr(trainer.data_collator, "collator", None)):
            if isinstance(collator, CUECollator):
                collator.phrases_per_caption = None
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    plain, cached = logs
    assert len(plain) == len(cached) == 20 // steps
    for one, other in zip(plain, cached, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            # Logged terms are rounded to four digits.
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=2e-4), name
    assert plain[-1]["loss"] < plain[0]["loss"]


def test_memory_is_that_of_a_chunk(names, processor, monkeypatch):
    model = lively(names)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    peaks = {}
    for count in (2, 12):
        chunks = chunked(processor, ("image",), rows=make_rows(("image",), count=count))
        per_chunk = []
        embed = embed_with(model)

        def measured(chunk, embed=embed, per_chunk=per_chunk):
            with saved_bytes() as kept:
                result = embed(chunk)
            per_chunk.append(sum(size for pointer, size in kept.items() if pointer not in weights))
            return result

        backward_in_chunks(model, chunks, torch.device("cpu"), measured, loss_of, lambda loss: loss.backward())
        assert len(per_chunk) == count  # two turns of two samples each
        assert max(per_chunk[: count // 2]) == 0  # the first pass keeps nothing
        peaks[count] = max(per_chunk)
    # Six times the samples; chunks differ in how many of their texts are different ones.
    assert peaks[12] < 1.5 * peaks[2]


def test_running_statistics_move_once(processor, encoders, names):
    model = CUEModel.from_encoders(
        text=names["text"], image=str(encoders["resnet"]), projection_dim=16, composition_dim=16
    ).train()
    chunks = chunked(processor, ("image",))
    count = len(chunks.batches)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    backward_in_chunks(model, chunks, torch.device("cpu"), embed_with(model), loss_of, lambda loss: loss.backward())
    assert all(int(norm.num_batches_tracked) == count for norm in norms)
    assert len(chunks.batches) == 1 < count  # the others have made room


def test_chunks_that_lack_a_kind(names, processor):
    """One caption has no phrases and another row no image: their chunks have other inputs."""
    rows = make_rows(("image",)).to_list()
    rows[0]["image"] = None
    rows[1]["image"] = None
    rows[4]["caption"] = rows[5]["caption"] = ["dog", "cat"]
    one = lively(names)
    two = copy.deepcopy(one)
    chunks = ChunkedCollator(CUECollator(processor, ALL, 2), 2)(rows)["chunks"]
    assert len({frozenset(batch["model"]) for batch in chunks.batches}) > 1
    torch.manual_seed(3)
    expected = whole(one, chunks)
    torch.manual_seed(3)
    found = backward_in_chunks(
        two, chunks, torch.device("cpu"), embed_with(two), loss_of, lambda loss: loss.backward()
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(gradients(two)[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_chunk_of_broken_rows_is_left_out(processor):
    rows = make_rows(("image",)).to_list()
    for row in rows[:2]:
        row["image"] = {"bytes": b"no picture", "path": None}
    bad = BadRows("skip")
    collator = ChunkedCollator(CUECollator(processor, ALL, 2, bad_rows=bad), 2)
    assert len(collator(rows)["chunks"].batches) == 2
    assert bad.count == 2
    assert len(collator(rows[:2])["chunks"].batches) == 1  # what was read before stands in
    with pytest.raises(EveryRowBroken, match="every row of this batch is broken"):
        ChunkedCollator(CUECollator(processor, ALL, 2, bad_rows=bad), 2)(rows[:2])


@pytest.mark.parametrize("size", [6, 3, 0])
def test_a_batch_that_chunks_do_not_fill(size, tmp_path):
    with pytest.raises(ValueError, match=rf"contrastive_batch_size={size} .* multiple of .*, 4, such as"):
        CUETrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, contrastive_batch_size=size, use_cpu=True
        )
