"""Which samples a run keeps the pictures of: whole exams, so that both sides of a patient can be looked at together."""

from __future__ import annotations

from m4oe_ds.data.manifest import Manifest


def exam_of(name: str) -> str:
    """Pseudonym of an exam from its name in a manifest, which may end in a side: ``<hash16>-l``."""
    return name.partition("-")[0]


def exams_shown(manifest: Manifest, count: int) -> frozenset[str]:
    """Exams with at least ``count`` samples together, or all there are: of every patient the one with most samples.

    Patients come in the order of the manifest, which is that of keyed hashes, so nothing is picked by what it shows.

    Args:
        manifest: of the split.
        count: number of samples wanted; 0 = none.
    """
    by_group: dict[str, dict[str, int]] = {}
    for shard in manifest.shards:
        for group, name in zip(shard.groups, shard.exams, strict=True):
            exams = by_group.setdefault(group, {})
            exams[exam_of(name)] = exams.get(exam_of(name), 0) + 1
    chosen: set[str] = set()
    have = 0
    for exams in by_group.values():
        if have >= count:
            break
        best = max(exams, key=lambda exam: exams[exam])  # the first of equals
        chosen.add(best)
        have += exams[best]
    return frozenset(chosen)
