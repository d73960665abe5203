"""TensorBoard gets the figures of a validation; sums of several ranks are those of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from m4oe_ds.analysis.routing_statistics import RoutingSums, routing_view
from m4oe_ds.analysis.validation_figures import ValidationFigures
from m4oe_ds.evaluation.inference import predict_split
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.models import build, spec_for
from m4oe_ds.training.records import Recorder
from tests.distributed import problem
from tests.integration import shards

ROUTED = {"fig3c_utilisation", "fig5_contribution", "fig6b_experts"}


def drawn(folder: Path, *overrides: str) -> tuple[ValidationFigures, dict[str, object]]:
    cfg = problem.config("data.modalities=[]", *overrides)
    spec = spec_for(cfg)
    stream = shards.stream(shards.write(folder / "shards", {"val": 13}) / "val", spec, 5)
    board = ValidationFigures(spec, cfg.model.name)
    predictions = predict_split(
        build(cfg).eval(),
        stream.evaluation(),
        spec,
        problem.objective(spec),
        torch.device("cpu"),
        torch.float32,
        observe=board.add,
    )
    board.reduce(lambda sums: sums)
    report = evaluate_split(predictions.arrays(), spec.tasks, resamples=0)
    return board, board.draw(predictions, report, folder)


def test_every_figure_reaches_the_event_file(tmp_path: Path) -> None:
    cosines = [[1.0, -0.5], [-0.5, 1.0]]
    record = {"step": 1, "epoch": 0, "gradient_conflict": {"tasks": ["density", "risk1"], "cosines": cosines}}
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    _, made = drawn(tmp_path)
    assert set(made) == ROUTED | {"roc", "confusion", "fig6a_conflict"}
    (tmp_path / "run").mkdir()
    recorder = Recorder(tmp_path / "run", 9, enabled=True, trackers=("tensorboard",))
    recorder.figures("validation", made, 7)
    recorder.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "run" / "validation"), {"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == set(made)
    (image,) = events.Images("roc")
    assert image.step == 7
    assert len(image.encoded_image_string) > 2000
    other_rank = Recorder(tmp_path / "other", 9, enabled=False)
    other_rank.figures("validation", made, 7)
    other_rank.close()
    assert not (tmp_path / "other").exists()


def test_a_model_without_task_slots_has_the_figures_of_its_answers(tmp_path: Path) -> None:
    _, made = drawn(tmp_path, "model.name=mirai")
    assert set(made) == {"roc", "confusion"}


def test_sums_of_two_ranks_are_those_of_one() -> None:
    config = problem.config()
    model, spec = build(config).eval(), spec_for(config)
    whole = problem.samples(spec, 8, seed=0)

    def summed(start: int, stop: int) -> RoutingSums:
        sums, batch = RoutingSums(spec), problem.part(whole, start, stop)
        with torch.no_grad():
            tokens = model.encode(batch)
            output = model.predict(model.fuse(tokens, batch))
        view = routing_view(output, [tokens.by_modality[name].shape[1] for name in spec.modalities], spec)
        assert view is not None
        sums.add(view, batch.valid, batch.label_mask)
        return sums

    parts, one, sent = [summed(0, 3), summed(3, 8)], summed(0, 8), []
    for part in parts:
        part.reduce(lambda local: (sent.append(local), local)[1])
    parts[0].reduce(lambda _: sent[0] + sent[1])
    found, expected = parts[0].result(), one.result()
    assert found["samples"] == 8
    for name in ("utilisation_ij", "contribution_ki", "labelled_k", "expert_mass_jk", "p_expert_given_task_jk"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    empty = RoutingSums(spec)
    empty.reduce(lambda _: torch.zeros(0))
    assert empty.empty
