"""Early stopping counts validations without improvement, also across a resume."""

from __future__ import annotations

import json
import math

import pytest

from m4oe_ds import config_loader
from m4oe_ds.errors import ConfigError
from m4oe_ds.training.patience import Patience

NAN, INF = math.nan, math.inf


def counted(scores: list[float], limit: int = 3, least: float = 0.0) -> list[int]:
    patience, found = Patience(limit, "loss", least), []
    for score in scores:
        patience.add(score)
        found.append(patience.waited)
    return found


@pytest.mark.parametrize(
    ("scores", "least", "waited"),
    [
        ([3.0, 2.0, 2.5, 2.4, 1.9], 0.0, [0, 0, 1, 2, 0]),
        ([2.0, 2.0, 2.0], 0.0, [0, 1, 2]),  # as good is not better
        ([2.0, 1.95, 1.91, 1.89], 0.1, [0, 1, 2, 0]),  # small steps add up from the last improvement that counted
        ([INF, NAN, 2.0, NAN, 3.0], 0.0, [0, 0, 0, 1, 2]),  # undefined counts only after something was defined
        ([-0.5, -0.6, -0.6], 0.0, [0, 0, 1]),  # figures of which more is better come negated
    ],
)
def test_validations_without_improvement(scores: list[float], least: float, waited: list[int]) -> None:
    assert counted(scores, least=least) == waited


def test_it_is_exhausted_at_its_limit_and_never_without_one() -> None:
    patience = Patience(2, "loss")
    for score, over in ((1.0, False), (1.5, False), (1.5, True)):
        patience.add(score)
        assert patience.exhausted is over
    assert patience.note() == ", no improvement for 2 of 2 validations"
    never = Patience(0, "loss", best=1.0, waited=100)
    assert not never.exhausted
    assert never.note() == ""


def test_a_resumed_run_goes_on_counting() -> None:
    scores = [3.0, 2.0, 2.5, 2.4, 1.9, 2.0]
    for cut in range(len(scores)):
        first = Patience(3, "loss")
        for score in scores[:cut]:
            first.add(score)
        second = Patience(3, "loss")
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for score in scores[cut:]:
            second.add(score)
        assert (second.best, second.waited) == (1.9, 1)


def test_another_metric_and_older_checkpoints_start_again() -> None:
    patience = Patience(3, "auroc")
    patience.load_state_dict({"metric": "loss", "best": 0.1, "waited": 2})
    patience.load_state_dict(None)
    assert (patience.best, patience.waited) == (INF, 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["run.patience=2", "run.eval_every_epochs=0"], "run.patience counts validations, and there are none"),
        (["run.min_improvement=0.1"], "does nothing without run.patience"),
        (["run.patience=-1"], "must be at least 0"),
    ],
)
def test_contradictions(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_loader.load(None, settings)
