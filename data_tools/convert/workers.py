"""Converts samples in processes that may die: image decoders are C code, and damaged files crash or hang them.

A process that dies or takes too long is replaced; the images of its sample are then tried one at a time, the guilty
ones are quarantined under ``decoder_crashed`` or ``decoder_hung``, and the others are converted as if nothing had
happened.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from typing import Any

from data_tools.convert.images import convert_sample
from data_tools.convert.sample import SampleJob, SampleResult

logger = logging.getLogger(__name__)
SECONDS_PER_SAMPLE = 600.0  # a full-resolution sample takes seconds; nothing honest takes minutes


@dataclass(frozen=True)
class _Failure:
    """A sample whose process died or was stopped."""

    reason: str


def _serve(pipe: Any) -> None:
    """Loop of a worker process: a job in, a result or an exception out."""
    while True:
        try:
            job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(convert_sample(job))
        except KeyboardInterrupt:
            return
        except Exception as error:  # not of one image: those are quarantined inside. It stops the conversion
            pipe.send(error)


class _Worker:
    """One process and the sample it works on."""

    def __init__(self) -> None:
        context = get_context("spawn")
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # the processes are the parallelism; read when libraries load
        try:
            self.pipe, child = context.Pipe()
            self.process = context.Process(target=_serve, args=(child,), daemon=True)
            self.process.start()
            child.close()  # so that the death of the process shows as the end of the pipe
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        self.number: int | None = None
        self.since = 0.0

    def begin(self, number: int, job: SampleJob) -> None:
        self.number, self.since = number, time.monotonic()
        self.pipe.send(job)

    def late(self, seconds: float) -> bool:
        """Whether the sample has taken longer than that."""
        return time.monotonic() - self.since > seconds

    def result(self) -> Any:
        """What the process sent, or a failure if it died."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            return _Failure("decoder_crashed")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _alone(job: SampleJob, seconds: float) -> SampleResult | _Failure:
    """One job in a process of its own."""
    worker = _Worker()
    try:
        worker.begin(0, job)
        while not (ready := worker.pipe.poll(1.0)) and not worker.late(seconds):
            pass
        outcome: SampleResult | _Failure | Exception = worker.result() if ready else _Failure("decoder_hung")
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
        yield from map(convert_sample, jobs)
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
