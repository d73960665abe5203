"""MModN: sizes, the state and what an absent modality does to it, answers after every step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.mmodn import Options, StateSequence
from m4oe_ds.runs.objective import model_loss
from tests.distributed import problem

GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
FOUR = ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",)


def config_of(*overrides: str) -> Config:
    return problem.config("model.name=mmodn", *overrides)


def case(*overrides: str, count: int = 6) -> tuple[Config, nn.Module, Batch]:
    config = config_of(*overrides)
    spec = spec_for(config)
    batch = problem.samples(spec, count, seed=0)
    masks = {task.name: torch.zeros(count, 1, *spec.image_size) for task in spec.tasks if task.dense}
    return config, build(config), dataclasses.replace(batch, labels={**batch.labels, **masks})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_native_network_has_its_size() -> None:
    _, model, _ = case("model.regime=native", "data.image_size=[64, 64]")
    assert parameters(model.encoders.by_modality["ffdm_cc"]) == 11_176_512
    assert parameters(model.sequence.updates[0]) == 28_150
    assert parameters(model.heads["risk1"]) == 1_632 + 1_056 + 66 == 2_754
    others = parameters(model.heads) - 5 * 2_754
    assert others == 2 * (1_632 + 1_056) + 33 * 3 + 33 * 4  # birads, density
    assert parameters(model) == 2 * 11_204_662 + 50 + parameters(model.heads)


@pytest.mark.parametrize("options", ["{}", "{change: 1.0}", "{state: 256, shuffle: true}"])
@pytest.mark.parametrize("mode", ["none", "replace", "append"])
@pytest.mark.parametrize("problem_", [GAMMA, FOUR, ("data.tasks=[density]",)])
def test_every_parameter_learns_for_any_modalities_and_tasks(
    options: str, mode: str, problem_: tuple[str, ...]
) -> None:
    config, model, batch = case(*problem_, f"model.attach_mtoe={mode}", f"model.options={options}", count=8)
    goal = problem.objective(model.spec)
    goal.model_loss = model_loss(config, model.spec)
    for task in model.spec.tasks:
        if task.dense:
            goal.losses[task.name] = dataclasses.replace(goal.losses[task.name], kind="bce_dice")
    output = model(batch)
    total = sum(part.sum / part.count.clamp_min(1) for part in goal.task_parts(output, batch).values())
    (total + sum(output.aux.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    assert ("state_change" in output.aux) is (mode != "replace" and "change" in options)


def test_there_is_an_answer_after_every_step_and_the_last_one_counts() -> None:
    _, model, batch = case(*FOUR)
    output = model.eval()(batch)
    for task in model.spec.tasks:
        steps = output.extras[f"step_logits.{task.name}"]
        assert steps.shape == (5, 6, task.num_classes)
        assert torch.equal(steps[-1], output.logits[task.name])
    assert output.extras["step_order"].tolist() == [0, 1, 2, 3]
    assert torch.equal(output.extras["steps"], torch.cat([torch.ones(1, 6, dtype=torch.bool), batch.present.T]))


def test_a_state_is_a_linear_function_of_features_and_state() -> None:
    sequence = StateSequence((3, 5), Options(state=4))
    x = [torch.randn(2, 3), torch.randn(2, 5)]
    states = sequence(x, torch.ones(2, 2, dtype=torch.bool), [0, 1])
    expected = sequence.initial.expand(2, -1)
    for i, update in enumerate(sequence.updates):
        torch.testing.assert_close(states[i], expected)
        width = x[i].shape[1]
        expected = x[i] @ update.weight[:, :width].T + expected @ update.weight[:, width:].T + update.bias
    torch.testing.assert_close(states[2], expected)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_an_absent_modality_is_as_if_its_encoder_were_not_there(missing: int) -> None:
    widths = (3, 5, 4)
    sequence = StateSequence(widths, Options(state=6))
    kept = [i for i in range(3) if i != missing]
    smaller = StateSequence(tuple(widths[i] for i in kept), Options(state=6))
    smaller.initial = sequence.initial
    smaller.updates = nn.ModuleList([sequence.updates[i] for i in kept])
    x = [torch.randn(2, width) for width in widths]
    present = torch.ones(2, 3, dtype=torch.bool)
    present[:, missing] = False
    expected = smaller([x[i] for i in kept], torch.ones(2, 2, dtype=torch.bool), [0, 1])
    x[missing] = torch.full_like(x[missing], float("nan"))
    states = sequence(x, present, [0, 1, 2])
    assert torch.equal(states[missing + 1], states[missing])
    assert torch.equal(torch.cat([states[: missing + 1], states[missing + 2 :]]), expected)
    states.square().sum().backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in sequence.updates[missing].parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in sequence.parameters())


def test_without_any_modality_every_sample_gets_the_answer_to_the_first_state() -> None:
    _, model, batch = case()
    batch = dataclasses.replace(batch, present=torch.zeros_like(batch.present))
    output = model.eval()(batch)
    for task in model.spec.tasks:
        expected = model.heads[task.name](model.sequence.initial).expand(6, -1)
        torch.testing.assert_close(output.logits[task.name], expected)


def test_the_state_change_by_hand() -> None:
    states = torch.tensor([[[0.0, 0.0]] * 3, [[1.0, 3.0]] * 3, [[1.0, 3.0]] * 3, [[3.0, 3.0]] * 3])
    taken = torch.tensor([[True, True, True], [False, True, True], [True, True, True]])
    valid = torch.tensor([True, True, False])
    # squared changes 5, 0, 2: over two steps in the first sample, over three in the second, the third is padding
    assert StateSequence.change(states, taken, valid).item() == pytest.approx(0.01 * (7 / 2 + 7 / 3) / 2)
    assert StateSequence.change(states, taken, torch.zeros_like(valid)).item() == 0.0


def test_a_large_weight_makes_the_state_change_less() -> None:
    def distance(weight: float) -> float:
        torch.manual_seed(0)
        sequence, read = StateSequence((4, 4), Options(state=8)), nn.Linear(8, 2)
        x, y = [torch.randn(32, 4), torch.randn(32, 4)], torch.randint(2, (32,))
        present, valid = torch.ones(32, 2, dtype=torch.bool), torch.ones(32, dtype=torch.bool)
        optimizer = torch.optim.Adam([*sequence.parameters(), *read.parameters()], lr=1e-2)
        for _ in range(100):
            states = sequence(x, present, [0, 1])
            change = sequence.change(states, present.T, valid)
            loss = nn.functional.cross_entropy(read(states[-1]), y) + weight * change
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return change.item()

    assert distance(1000.0) < 0.2 * distance(0.0)


def test_shuffled_orders_differ_between_batches_agree_between_copies_and_rest_in_evaluation() -> None:
    def orders(sequence: StateSequence) -> list[list[int]]:
        return [sequence.order() for _ in range(8)]

    first, second = (StateSequence((2, 2, 2, 2), Options(state=3, shuffle=True)).train() for _ in range(2))
    drawn = orders(first)
    assert drawn == orders(second)
    assert len({tuple(order) for order in drawn}) > 3
    assert all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    resumed = StateSequence((2, 2, 2, 2), Options(state=3, shuffle=True)).train()
    resumed.load_state_dict(first.state_dict())
    assert resumed.order() == first.order()
    assert first.eval().order() == [0, 1, 2, 3]


def test_the_steps_of_a_shuffled_batch_are_those_of_its_order() -> None:
    _, model, batch = case(*FOUR, "model.options={shuffle: true}")
    for _ in range(3):
        output = model.train()(batch)
        order = output.extras["step_order"]
        assert torch.equal(output.extras["steps"][1:], batch.present[:, order].T)


def test_replace_builds_no_state_and_append_merges_into_the_last_one() -> None:
    _, model, batch = case("model.attach_mtoe=replace")
    assert model.sequence is None
    assert not any(name.startswith(("sequence", "merge")) for name, _ in model.named_parameters())
    assert not any(name.startswith("step") for name in model(batch).extras)
    assert model.shared_layer() is model.mtoe.block.mtoe.experts
    _, model, batch = case("model.attach_mtoe=append")
    output = model.eval()(batch)
    states: Tensor = output.extras["states"]
    assert torch.equal(output.extras["step_logits.density"][0], model.heads["density"](states[0]))
    assert not torch.allclose(output.extras["step_logits.density"][-1], model.heads["density"](states[-1]))
    assert model.shared_layer() is model.sequence.updates[-1]


def test_extras_name_what_enters_the_fusion() -> None:
    _, model, batch = case()
    output = model(batch)
    for name in ("ffdm_cc", "syn_mlo"):
        assert output.extras[f"features.{name}"].shape == (6, 16, 2, 2)
