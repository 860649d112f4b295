"""CUETrainer: it learns, logs every term, evaluates every pair, resumes, adapts, and stops at NaN by name."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from trainers import make_trainer

from modeling_cue import CUEModel, CUEProcessor
from modeling_cue.training.arguments import CUETrainingArguments
from modeling_cue.training.lora import add_lora, load_lora

# A few steps of tiny towers hardly move the radii.
pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")


def test_it_learns_and_logs_every_term(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, ("image", "audio", "video"), max_steps=30, learning_rate=3e-3)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 30
    terms = {f"info_nce_{pair}" for pair in ("t2i", "t2a", "t2v", "i2a", "i2v", "a2v")}
    terms |= {"containment_p2c", "containment_c2i", "containment_c2a", "containment_c2v", "composition"}
    assert terms <= set(logs[0])
    assert sum(log["loss"] for log in logs[-6:]) < 0.9 * sum(log["loss"] for log in logs[:6])


def test_evaluation_measures_every_pair(model, processor, tmp_path):
    metrics = make_trainer(model, processor, tmp_path, ("image", "audio", "video")).evaluate()
    for pair in ("t2i", "i2t", "t2a", "a2t", "t2v", "v2t", "i2a", "a2i", "i2v", "v2i", "a2v", "v2a"):
        for k in (1, 5, 10):
            assert 0 <= metrics[f"eval_{pair}_R@{k}"] <= 1
    assert metrics["eval_t2i_R@10"] == 1.0  # only six images
    sides = [metrics[f"eval_{pair}_R@{k}"] for pair in ("t2i", "i2t") for k in (1, 5, 10)]
    assert metrics["eval_rsum"] == pytest.approx(sum(sides))
    assert {"eval_containment_auroc", "eval_radius_mean_text", "eval_composition_R@1"} <= set(metrics)


def test_evaluation_does_not_depend_on_the_batch(model, processor, tmp_path):
    few = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=1).evaluate()
    many = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=6).evaluate()
    for name in few:
        if not name.endswith(("runtime", "per_second")):
            assert few[name] == pytest.approx(many[name], abs=1e-5), name


def test_a_model_without_text_and_a_text_tower_left_as_it_is(model, processor, names, tmp_path):
    pair = {"image": names["image"], "audio": names["audio"]}
    wordless = CUEModel.from_encoders(**pair, projection_dim=16, composition_dim=16)
    trainer = make_trainer(wordless, CUEProcessor.from_encoders(**pair), tmp_path, ("image", "audio"))
    for collator in (trainer.data_collator, trainer.eval_collator):
        collator.processor, collator.modalities = trainer.processing_class, ("image", "audio")
    trainer.train()
    assert "eval_i2a_R@1" in trainer.evaluate()

    model.config.text_config.pad_token_id = 7
    trainer = make_trainer(model, processor, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert model.config.text_config.pad_token_id == 7
    assert trainer.processing_class is processor
    assert (tmp_path / "checkpoint-1" / "processor_config.json").is_file()


def test_best_model_and_resume(model, processor, tmp_path):
    arguments = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4,
        "load_best_model_at_end": True, "save_total_limit": 3,
    }  # fmt: skip
    straight = copy.deepcopy(model)
    trainer = make_trainer(straight, processor, tmp_path, **arguments)
    trainer.train()
    best = max(log["eval_rsum"] for log in trainer.state.log_history if "eval_rsum" in log)
    assert trainer.state.best_metric == best
    again = make_trainer(copy.deepcopy(model), processor, tmp_path, **arguments | {"load_best_model_at_end": False})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    reference = CUEModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-5, atol=1e-6)


def test_nan_stops_the_run_with_the_name_of_the_term(model, processor, tmp_path):
    with torch.no_grad():
        model.image_head.projection.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="info_nce_t2i"):
        make_trainer(model, processor, tmp_path).train()


def test_a_batch_of_one(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, per_device_train_batch_size=1, max_steps=2)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_gradient_accumulation_takes_the_mean(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, gradient_accumulation_steps=2, max_steps=2)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    weighted = [
        log["info_nce_t2i"] + 0.1 * (log["containment_p2c"] + log["containment_c2i"]) / 2 + 0.1 * log["composition"]
        for log in logs
    ]
    for log, expected in zip(logs, weighted, strict=True):
        assert log["loss"] == pytest.approx(expected, rel=0.01)


def test_head_learning_rate(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, head_learning_rate=0.5, learning_rate=0.25)
    rates = {}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr"], group["weight_decay"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)][0] == (0.25 if "_tower." in name else 0.5), name
    assert rates[id(model.text_head.projection.bias)][1] == 0.0
    assert rates[id(model.text_head.projection.weight)][1] == trainer.args.weight_decay


def test_text_radii_start_at_the_mean_matched_angle(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, max_steps=1, learning_rate=1e-12)
    trainer.train()
    with torch.no_grad():
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(0, 12, 2)])
        output = model.eval()(**processor.normalize(batch["model"]))
    cosine = (output.text_embeds[:6] * output.image_embeds).sum(-1)
    assert output.text_radius.mean().item() == pytest.approx(torch.acos(cosine).mean().item() + 0.1, abs=0.15)
    assert output.image_radius.mean().item() == pytest.approx(0.1, abs=0.02)


def test_lora_trains_adapters_and_heads_and_comes_back(model, processor, tmp_path):
    before = copy.deepcopy(model.state_dict())
    model.freeze(["text"])
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, base=tmp_path / "base")
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("image_tower" in name and "lora_A" in name for name in trainable)
    assert not any("text_tower" in name for name in trainable)
    assert all("lora_" in name or "modules_to_save" in name for name in trainable)
    trainer = make_trainer(adapted, processor, tmp_path)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    batch = trainer.eval_collator([trainer.eval_dataset[i] for i in range(2)])
    merged = load_lora(tmp_path).eval()
    with torch.no_grad():
        expected, found = adapted.eval()(**batch["model"]), merged(**batch["model"])
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.text_radius, expected.text_radius, atol=1e-5, rtol=1e-4)
    kept = "image_tower.encoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.state_dict()[kept], before[kept])
    assert not torch.equal(merged.state_dict()["text_head.projection.weight"], before["text_head.projection.weight"])
    with pytest.raises(ValueError, match="holds no LoRA adapter"):
        load_lora(tmp_path / "base")


def test_lora_with_nothing_to_adapt(model, tmp_path):
    model.freeze(["text", "image", "audio"])
    with pytest.raises(ValueError, match="every tower is frozen"):
        add_lora(model, rank=2, alpha=4, dropout=0.0, base=tmp_path)


def test_results_are_json(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    trainer.save_metrics("test", trainer.evaluate())
    assert "eval_rsum" in json.loads((tmp_path / "all_results.json").read_text())


def test_the_optimiser_is_fused_with_every_rate(model, processor, tmp_path):
    groups = make_trainer(model, processor, tmp_path, head_learning_rate=0.5).create_optimizer().param_groups
    assert len(groups) == 4
    assert all(group["fused"] for group in groups)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_training_takes_the_same_steps(model, processor, tmp_path):
    one, other = (
        make_trainer(copy.deepcopy(model), processor, tmp_path, max_steps=3, torch_compile=compiled)
        for compiled in (False, True)
    )
    logs = []
    for trainer in (one, other):
        for part in trainer.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        trainer.data_collator.phrases_per_caption = None
        trainer.train()
        logs.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)


def test_heads_that_have_learned_keep_their_radii(model, processor, tmp_path):
    still = {"max_steps": 1, "learning_rate": 0.0}
    assert model.text_head.has_initial_radius
    make_trainer(model, processor, tmp_path, **still).train()
    started = model.text_head.radius[-1].bias.clone()
    assert not model.text_head.has_initial_radius
    with torch.no_grad():
        model.text_head.radius[-1].bias += 0.5
    model.save_pretrained(tmp_path / "trained")
    again = CUEModel.from_pretrained(tmp_path / "trained")
    make_trainer(again, processor, tmp_path, **still).train()
    assert torch.equal(again.text_head.radius[-1].bias, started + 0.5)


def test_learned_scales_do_not_decay(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    assert not [name for name in trainer.get_decay_parameter_names(model) if "scales" in name]
    assert "text_head.projection.weight" in trainer.get_decay_parameter_names(model)


def test_terms_take_no_memory_where_nothing_is_logged(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, logging_strategy="no")
    trainer.train()
    total, count = trainer._terms["info_nce_t2i"]
    assert (total.shape, count) == ((), 4)


def test_one_process_uses_one_device(tmp_path, caplog):
    arguments = CUETrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    arguments._n_gpu = 2
    assert arguments.train_batch_size == 8
    arguments._keep_to_one_device()
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)
    assert "2 GPUs and one process, which uses the first of them: start with `accelerate launch`" in caplog.text


def test_no_token_is_pickled_with_the_arguments(tmp_path):
    arguments = CUETrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret", use_cpu=True)
    assert pickle.loads(pickle.dumps(arguments)).hub_token is None
    for same in (copy.copy(arguments), copy.deepcopy(arguments), dataclasses.replace(arguments, seed=1)):
        assert same.hub_token == "hf_secret"


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_loading_processes_may_be_started_in_any_way(model, processor, tmp_path, context):
    more = {"dataloader_num_workers": 1, "max_steps": 2}
    losses = []
    for given in ({}, {"dataloader_multiprocessing_context": context, "dataloader_persistent_workers": True}):
        trainer = make_trainer(copy.deepcopy(model), processor, tmp_path, **more, **given)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]
