"""Subgroup tables: rows against metrics of the subset, limits, missing values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.subgroups import SubgroupTable, group_names, subgroup_table


def drawn(count: int = 300) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(-1, 2, size=count)
    return {
        "labels": labels,
        "probability": np.clip(random.random(count) * 0.8 + 0.2 * labels, 0, 1),
        "groups": np.arange(count) // 2,
        "vendor": random.choice(["hologic", "ge", "siemens"], size=count, p=[0.6, 0.35, 0.05]),
    }


def rows(table: SubgroupTable) -> dict[tuple[str, str], dict]:
    return {(row["attribute"], row["group"]): row for row in table.as_dict()["rows"]}


def test_each_row_is_the_metric_of_its_subset() -> None:
    data = drawn()
    table = subgroup_table(
        data["labels"], data["probability"], data["groups"], {"vendor": data["vendor"]}, bootstrap=Bootstrap(50)
    )
    found = rows(table)
    assert list(found) == [("all", "all"), ("vendor", "ge"), ("vendor", "hologic"), ("vendor", "siemens")]
    for (_, group), row in found.items():
        member = np.ones(300, dtype=bool) if group == "all" else data["vendor"] == group
        keep = member & (data["labels"] >= 0)
        assert row["n"] == keep.sum()
        assert row["n_groups"] == len(set(data["groups"][keep]))
        assert row["positives"] == (data["labels"][keep] == 1).sum()
        assert row["class_counts"] == [row["n"] - row["positives"], row["positives"]]
        assert row["unlabelled"] == (member & ~keep).sum()
        if group != "siemens":
            want = roc_auc_score(data["labels"][keep], data["probability"][keep])
            assert row["estimate"]["value"] == pytest.approx(want)
            assert row["estimate"]["low"] < want < row["estimate"]["high"]
    json.dumps(table.as_dict(), allow_nan=False)


def test_small_groups_are_counts_only() -> None:
    data = drawn()
    args = (data["labels"], data["probability"], data["groups"], {"vendor": data["vendor"]})
    small = rows(subgroup_table(*args, min_patients=30, bootstrap=Bootstrap(0)))["vendor", "siemens"]
    assert small["estimate"] is None
    assert small["reason"] == "fewer than 30 patients: counts only"
    assert small["n"] > 0
    patients = small["n_groups"]
    at_limit = rows(subgroup_table(*args, min_patients=patients, min_positives=0, bootstrap=Bootstrap(0)))[
        "vendor", "siemens"
    ]
    assert at_limit["estimate"] is not None
    below = rows(subgroup_table(*args, min_patients=patients + 1, min_positives=0, bootstrap=Bootstrap(0)))[
        "vendor", "siemens"
    ]
    assert below["estimate"] is None


def test_patients_count_for_the_limit_not_rows() -> None:
    labels, one_patient = [0, 1] * 20, [7] * 40
    found = rows(subgroup_table(labels, np.linspace(0, 1, 40), one_patient, {}, min_patients=2))
    assert found["all", "all"]["n"] == 40
    assert found["all", "all"]["estimate"] is None


@pytest.mark.parametrize("rare", [0, 1])
def test_a_class_too_rare_is_counts_only(rare: int) -> None:
    labels = np.full(50, 1 - rare)
    labels[:4] = rare
    found = rows(subgroup_table(labels, np.linspace(0, 1, 50), np.arange(50), {}, bootstrap=Bootstrap(0)))["all", "all"]
    assert found["estimate"] is None
    assert found["reason"] == "fewer than 5 positives or negatives: counts only"
    labels[4] = rare
    found = rows(subgroup_table(labels, np.linspace(0, 1, 50), np.arange(50), {}, bootstrap=Bootstrap(0)))["all", "all"]
    assert found["estimate"]["value"] is not None


def test_one_class_without_limits_is_none_with_a_reason() -> None:
    found = subgroup_table([1] * 30, [0.5] * 30, range(30), {}, min_positives=0).rows[0]
    assert found.estimate is not None
    assert found.estimate.value is None
    assert found.reason == found.estimate.reason != ""


def test_more_classes_and_other_metrics() -> None:
    random = np.random.default_rng(1)
    labels, probability = random.integers(4, size=60), random.dirichlet(np.ones(4), size=60)
    sex = np.repeat(["a", "b"], 30)
    found = rows(subgroup_table(labels, probability, np.arange(60), {"sex": sex}, "accuracy", bootstrap=Bootstrap(20)))
    assert found["sex", "b"]["positives"] is None
    assert sum(found["sex", "b"]["class_counts"]) == 30
    want = accuracy_score(labels[30:], probability[30:].argmax(1))
    assert found["sex", "b"]["estimate"]["value"] == pytest.approx(want)

    def share_of_d(known: np.ndarray, _: np.ndarray) -> float:
        return float((known == 3).mean())

    table = subgroup_table(labels, probability, np.arange(60), {}, share_of_d, bootstrap=Bootstrap(0))
    assert table.metric == "share_of_d"
    assert table.rows[0].estimate is not None
    assert table.rows[0].estimate.value == pytest.approx((labels == 3).mean())


def test_unknown_values_are_one_group_at_the_end() -> None:
    values = ["x", "", None, float("nan"), "Unknown", "z", "x", " x "]
    assert group_names(values).tolist() == ["x", *["unknown"] * 4, "z", "x", "x"]
    table = subgroup_table(
        [0, 1] * 4, [0.1, 0.9] * 4, range(8), {"race": values}, min_patients=1, bootstrap=Bootstrap(0)
    )
    assert [(row.group, row.n) for row in table.rows] == [("all", 8), ("x", 3), ("z", 1), ("unknown", 4)]


def test_bad_input() -> None:
    with pytest.raises(DataError, match="vendor"):
        subgroup_table([0, 1], [0.1, 0.2], [0, 1], {"vendor": ["a"]})
    with pytest.raises(DataError):
        subgroup_table([0, 1], [0.1, 0.2], [0], {})
    with pytest.raises(DataError):
        subgroup_table([0, 1], [0.1, 0.2], [0, 1], {}, "f2")


def test_bands_stand_in_the_order_of_their_numbers() -> None:
    bands = ["<40", "40-49", "50-59", ">=100", "unknown"]
    values = np.tile(np.array(bands[::-1], dtype=object), 4)
    table = subgroup_table(np.zeros(20, dtype=int), np.full(20, 0.5), np.arange(20), {"age": values})
    assert [row.group for row in table.rows[1:]] == bands
