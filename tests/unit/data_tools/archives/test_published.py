"""Published label counts: coded as ours, and held against a conversion class by class."""

from __future__ import annotations

import pytest

from data_tools.archives.published import unlike_published
from data_tools.archives.readers import find_reader

Labels = dict[str, dict[str, dict[str, int]]]


def whole(dataset: str, **options: str) -> Labels:
    """Histograms of a conversion of the whole archive: all of a group of splits in its first one."""
    return {
        source.splits[0]: {
            task: {code: round(n) for code, n in numbers.items()} for task, numbers in source.labels.items()
        }
        for source in find_reader(dataset).published(options)
        if source.counted
    }


def test_the_counts_of_the_fact_sheets_in_our_codes() -> None:
    assert whole("vindr")["test"] == {
        "density": {"0": 10, "1": 190, "2": 1530, "3": 270},
        "birads": {"0": 1341, "1": 467, "2": 192},
    }
    assert whole("vindr")["train"]["birads"] == {"0": 5362, "1": 1871, "2": 767}
    both = [whole("vindr", birads_scheme="release")[split]["birads"] for split in ("train", "test")]
    assert [sum(part[code] for part in both) for code in "012"] == [6703, 2803, 494]
    assert whole("rsna")["train"] == {
        "density": {"0": 1106, "1": 5022, "2": 4872, "3": 618},
        "birads": {"0": 6280, "1": 850, "2": 2218},
    }
    assert whole("rsna", birads_sites="all")["train"]["birads"] == {"0": 6280, "1": 850, "2": 3475}
    assert whole("rsna", birads_scheme="native_rsna")["train"]["birads"] == {"0": 2218, "1": 6280, "2": 850}
    assert whole("gamma")["train"]["glaucoma"] == {"0": 50, "1": 26, "2": 24}


@pytest.mark.parametrize("dataset", ["vindr", "rsna", "gamma"])
def test_the_published_archive_is_like_itself_and_missing_labels_do_not_count(dataset: str) -> None:
    found = whole(dataset)
    assert not unlike_published(find_reader(dataset).published({}), found)
    for tables in found.values():
        for counts in tables.values():
            counts["-1"] = 100_000
    assert not unlike_published(find_reader(dataset).published({}), found)


def test_one_class_too_few_is_a_count_and_perhaps_a_share() -> None:
    found = whole("rsna")
    found["train"]["birads"]["1"] -= 20  # of 850: 2.4 %, and 0.2 % of all
    assert unlike_published(find_reader("rsna").published({}), found) == {"label_counts_unlike_published": 1}
    found["train"]["birads"]["0"] -= 3000
    shares = unlike_published(find_reader("rsna").published({}), found)
    assert shares == {"label_counts_unlike_published": 2, "label_shares_unlike_published": 3}


def test_exchanged_splits_are_found() -> None:
    found = whole("vindr")
    found["train"], found["test"] = found["test"], found["train"]
    assert unlike_published(find_reader("vindr").published({}), found)["label_counts_unlike_published"] == 14


def test_embed_is_judged_by_shares_alone() -> None:
    like = {"train": {"density": {"0": 99, "1": 419, "2": 428, "3": 54}}}
    assert not unlike_published(find_reader("embed").published({}), like)
    like["train"]["density"]["3"] = 200
    assert unlike_published(find_reader("embed").published({}), like) == {"label_shares_unlike_published": 3}
