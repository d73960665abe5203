"""Converts samples in processes that may die: image decoders are C code, and damaged files crash or hang them.

A process that dies or takes too long is replaced; the images of its sample are then tried one at a time, the guilty
ones are quarantined under ``decoder_crashed`` or ``decoder_hung``, and the others are converted as if nothing had
happened.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from typing import Any

from data_tools.convert.fetch import fetched, is_away
from data_tools.convert.images import convert_sample
from data_tools.convert.sample import SampleJob, SampleResult

logger = logging.getLogger(__name__)
SECONDS_PER_SAMPLE = 600.0  # a full-resolution sample takes seconds; nothing honest takes minutes
_HERE = "here"  # what a process says when the files of a sample have been fetched: then its time begins


@dataclass(frozen=True)
class _Failure:
    """A sample whose process died or was stopped."""

    reason: str


def _serve(pipe: Any, folder: str) -> None:
    """Loop of a worker process: a job in, a result or an exception out; temporary files go into the folder."""
    tempfile.tempdir = folder
    try:
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            try:
                with fetched(job) as here:
                    if here is not job:
                        pipe.send(_HERE)
                    result = convert_sample(here)
                pipe.send(result)
            except Exception as error:  # not of one image: those are quarantined inside. It stops the conversion
                pipe.send(error)
    except KeyboardInterrupt:
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """One process, the sample it works on, and a folder for what it fetches: one that is killed leaves it behind."""

    def __init__(self) -> None:
        context = get_context("spawn")
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # the processes are the parallelism; read when libraries load
        try:
            self.folder = tempfile.mkdtemp(prefix="m4oe-")
            self.pipe, child = context.Pipe()
            self.process = context.Process(target=_serve, args=(child, self.folder), daemon=True)
            self.process.start()
            child.close()  # so that the death of the process shows as the end of the pipe
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        self.number: int | None = None
        self.since = 0.0
        self.fetching = False

    def begin(self, number: int, job: SampleJob) -> None:
        self.number, self.since, self.fetching = number, time.monotonic(), is_away(job)
        self.pipe.send(job)

    def late(self, seconds: float) -> bool:
        """Whether the sample has taken longer than that since its files are here; fetching has limits of its own."""
        return not self.fetching and time.monotonic() - self.since > seconds

    def result(self) -> Any:
        """What the process sent, or a failure if it died; None if it has fetched the files and begins."""
        try:
            sent = self.pipe.recv()
        except (EOFError, ConnectionError):
            return _Failure("decoder_crashed")
        if not isinstance(sent, str):
            return sent
        self.since, self.fetching = time.monotonic(), False
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _alone(job: SampleJob, seconds: float) -> SampleResult | _Failure:
    """One job in a process of its own."""
    worker = _Worker()
    try:
        worker.begin(0, job)
        outcome: SampleResult | _Failure | Exception | None = None
        while outcome is None:
            if worker.pipe.poll(1.0):
                outcome = worker.result()
            elif worker.late(seconds):
                outcome = _Failure("decoder_hung")
    finally:
        worker.stop()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _without_the_guilty(job: SampleJob, seconds: float) -> SampleResult:
    """Tries every candidate image by itself, then converts the sample with those that can be read."""
    kept: dict[str, tuple[str, ...]] = {}
    bad = []
    for modality, paths in job.images.items():
        for path in paths:
            outcome = _alone(replace(job, images={modality: (path,)}, outlines={}), seconds)
            if isinstance(outcome, _Failure):
                bad.append((modality, outcome.reason))
            else:
                kept[modality] = (*kept.get(modality, ()), path)
    outcome = _alone(replace(job, images=kept), seconds)
    if isinstance(outcome, _Failure) and job.outlines:  # then it is one of the masks
        bad += [(task, outcome.reason) for task in job.outlines]
        outcome = _alone(replace(job, images=kept, outlines={}), seconds)
    if isinstance(outcome, _Failure):  # only together: give the sample up
        bad = [(name, outcome.reason) for name in (*job.images, *job.outlines)]
        outcome = SampleResult({**job.meta, "modalities": [], "geometry": {}})
    logger.warning("%d images of sample %s crash or hang their decoder", len(bad), job.meta["key"])
    outcome.bad += bad
    return outcome


def converted(jobs: Sequence[SampleJob], workers: int, seconds: float = SECONDS_PER_SAMPLE) -> Iterator[SampleResult]:
    """Converts the samples and yields the results in order, few at a time in memory.

    Args:
        workers: processes; 0 converts in this one, without protection.
        seconds: longest time for one sample.

    Raises:
        UserError: what concerns every image, such as a missing decoder.
    """
    if workers <= 0:
        for job in jobs:
            with fetched(job) as here:
                result = convert_sample(here)
            yield result
        return
    pool = [_Worker() for _ in range(min(workers, max(1, len(jobs))))]
    done: dict[int, SampleResult] = {}
    next_job = next_out = 0
    try:
        while next_out < len(jobs):
            for worker in pool:
                if worker.number is None and next_job < min(len(jobs), next_out + 4 * len(pool)):
                    worker.begin(next_job, jobs[next_job])
                    next_job += 1
            busy = [worker for worker in pool if worker.number is not None]
            ready = connection.wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                number = worker.number
                assert number is not None
                if worker.pipe in ready:
                    outcome = worker.result()
                elif worker.late(seconds):
                    outcome = _Failure("decoder_hung")
                else:
                    continue
                if outcome is None:
                    continue
                if isinstance(outcome, _Failure):
                    worker.stop()
                    pool[pool.index(worker)] = _Worker()
                    outcome = _without_the_guilty(jobs[number], seconds)
                elif isinstance(outcome, Exception):
                    raise outcome
                worker.number = None
                done[number] = outcome
            while next_out in done:
                yield done.pop(next_out)
                next_out += 1
    finally:
        for worker in pool:
            worker.stop()
