"""Converts the images of one sample; runs in worker processes."""

from __future__ import annotations

from typing import Any

from data_tools.convert.exam import convert_exam
from data_tools.convert.eye import convert_eye
from data_tools.convert.mammogram import best_view
from data_tools.convert.sample import SampleJob, SampleResult


def convert_sample(job: SampleJob) -> SampleResult:
    """Converts all images of a sample; a bad one is noted and left out."""
    if job.converter == "eye":
        return convert_eye(job)
    if job.converter == "exam":
        return convert_exam(job)
    result = SampleResult(dict(job.meta))
    geometry: dict[str, Any] = {}
    for modality in job.images:
        view = best_view(modality, job, result)
        if view is None:
            continue
        for name, value in view.facts.items():
            result.count(name, value)
        result.meta["vendor"] = result.meta["vendor"] or view.facts["vendor"]
        result.add(modality, view.stored.pixels, job.codec)
        geometry[modality] = view.stored.geometry
    result.meta["vendor"] = result.meta["vendor"] or "other"
    result.meta["modalities"] = list(geometry)
    result.meta["geometry"] = geometry
    return result
