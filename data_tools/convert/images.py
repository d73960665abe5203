"""Converts the images of one sample; runs in worker processes."""

from __future__ import annotations

from data_tools.convert.exam import convert_exam
from data_tools.convert.eye import convert_eye
from data_tools.convert.film import convert_film
from data_tools.convert.mammogram import convert_views
from data_tools.convert.sample import SampleJob, SampleResult


def convert_sample(job: SampleJob) -> SampleResult:
    """Converts all images of a sample; a bad one is noted and left out."""
    if job.converter == "eye":
        return convert_eye(job)
    if job.converter == "exam":
        return convert_exam(job)
    if job.converter == "film":
        return convert_film(job)
    result = SampleResult(dict(job.meta))
    convert_views(job, result)
    return result
