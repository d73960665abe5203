"""Names of the schema."""

from __future__ import annotations

from m4oe_ds.data.schema import DATASETS, risk_tasks


def test_risk_tasks_go_by_their_horizon_whatever_their_order() -> None:
    assert risk_tasks(["risk10", "density", "risk2", "risk1"]) == ("risk1", "risk2", "risk10")
    assert risk_tasks(task.name for task in DATASETS["embed"].tasks) == ("risk1", "risk2", "risk3", "risk4", "risk5")


def test_a_name_that_only_begins_like_one_has_no_horizon() -> None:
    assert risk_tasks(["risk", "risky", "risk_scope", "high_risk1"]) == ()
