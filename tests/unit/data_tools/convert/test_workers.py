"""Processes that die or hang are replaced, the guilty image is quarantined, everything else is converted."""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_tools.archives.plan import Outline
from data_tools.convert import fetch, workers
from data_tools.convert.images import convert_sample
from data_tools.convert.sample import ExamJob, SampleJob, SampleResult

LIMIT = 600.0


def sample_job(number: int, *files: str) -> SampleJob:
    meta = {
        "key": f"embed-{number:016x}-l",
        "group": f"{number:016x}",
        "dataset": "embed",
        "side": "l",
        "vendor": "",
        "labels": {},
    }
    images = dict(zip(("ffdm_cc", "ffdm_mlo"), ((name,) for name in files), strict=False))
    return SampleJob(meta, images, 16, 12, "b2")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a process says that it hangs. Only then does time pass, so that no load makes a good sample late."""
    said = tmp_path / "hanging"
    now = 0.0

    def clock() -> float:
        nonlocal now
        if said.exists():
            said.unlink()
            now += LIMIT + 1
        return now

    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=clock))
    return said


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch, hanging: Path) -> None:
    """Files called crash and hang do so to the process that reads them: forked workers inherit this reader."""
    monkeypatch.setattr(workers, "convert_sample", functools.partial(read, hanging=hanging))
    monkeypatch.setattr(workers, "get_context", lambda _: __import__("multiprocessing").get_context("fork"))


def read(job: SampleJob, hanging: Path) -> SampleResult:
    masks = [outline.files for several in job.outlines.values() for outline in several]
    for paths in (*job.images.values(), *masks):
        for path in paths:
            if path == "crash":
                faulthandler.disable()  # its report would look like a failure of the tests
                os.kill(os.getpid(), signal.SIGSEGV)
            if path == "hang":
                hanging.touch()
                time.sleep(300)
    meta: dict[str, Any] = {**job.meta, "modalities": list(job.images), "geometry": {}}
    return SampleResult(meta)


@pytest.mark.usefixtures("behaviour")
@pytest.mark.parametrize(
    ("file", "reason", "processes"),
    [("crash", "decoder_crashed", 2), ("hang", "decoder_hung", 1)],  # time must pass for nobody but the one that hangs
)
def test_one_bad_file_costs_one_image(file: str, reason: str, processes: int) -> None:
    jobs = [sample_job(n, "good", "good") for n in range(6)]
    jobs[2] = sample_job(2, file, "good")
    results = list(workers.converted(jobs, processes, seconds=LIMIT))
    assert [result.meta["key"] for result in results] == [job.meta["key"] for job in jobs]
    assert results[2].bad == [("ffdm_cc", reason)]
    assert results[2].meta["modalities"] == ["ffdm_mlo"]
    assert all(result.meta["modalities"] == ["ffdm_cc", "ffdm_mlo"] for n, result in enumerate(results) if n != 2)
    assert not any(result.bad for n, result in enumerate(results) if n != 2)


@pytest.mark.usefixtures("behaviour")
@pytest.mark.parametrize(("file", "reason"), [("crash", "decoder_crashed"), ("hang", "decoder_hung")])
def test_a_mask_that_kills_its_decoder_costs_no_image(file: str, reason: str) -> None:
    job = replace(sample_job(0, "good", "good"), outlines={"lesion_cc": (Outline("ffdm_cc", 0, (file,)),)})
    result = next(iter(workers.converted([job], 1, seconds=LIMIT)))
    assert result.bad == [("lesion_cc", reason)]
    assert result.meta["modalities"] == ["ffdm_cc", "ffdm_mlo"]


def test_processes_give_what_this_process_gives(tmp_path: Path) -> None:
    path = tmp_path / "absent.dcm"
    jobs = [sample_job(n, str(path)) for n in range(5)]
    alone = [convert_sample(job) for job in jobs]
    spread = list(workers.converted(jobs, 2))
    assert [result.bad for result in spread] == [result.bad for result in alone] == [[("ffdm_cc", "missing_file")]] * 5
    assert np.array_equal([r.meta["key"] for r in spread], [r.meta["key"] for r in alone])


# Sends files that are told by their names. While the first travels more time passes than a sample may take, and the
# clock is looked at. A process of its own: workers are forked here, which threads of this one could lock up.
_SLOW = """
import http.server, pathlib, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    first = True
    def do_GET(self):
        if Slow.first:
            Slow.first = False
            pathlib.Path(sys.argv[1]).touch()
            time.sleep(2.5)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(self.path[1:5].encode())
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Slow)
print(server.server_port, flush=True)
server.serve_forever()
"""


def _read_fetched(job: SampleJob, hanging: Path) -> SampleResult:
    assert not fetch.is_away(job)
    told = {path: Path(path).read_text() for paths in job.images.values() for path in paths}
    read(
        replace(job, images={name: tuple(map(told.__getitem__, paths)) for name, paths in job.images.items()}), hanging
    )
    return SampleResult({**job.meta, "modalities": list(job.images), "geometry": {}})


@pytest.mark.usefixtures("behaviour")
def test_time_on_the_way_is_not_the_decoders_and_a_killed_process_leaves_no_files(
    hanging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "convert_sample", functools.partial(_read_fetched, hanging=hanging))
    travelling, now = tmp_path / "travelling", 0.0

    def clock() -> float:
        nonlocal now
        if travelling.exists():
            travelling.unlink()
            now += LIMIT + 1
        told = now
        if hanging.exists():  # time passes afterwards: this may be the look at the clock when the files are here
            hanging.unlink()
            now += LIMIT + 1
        return told

    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=clock))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    exam = ExamJob((), (), {}, (8, 8, 8), {}, {})
    with subprocess.Popen([sys.executable, "-c", _SLOW, str(travelling)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        place = f"http://127.0.0.1:{int(server.stdout.readline())}"
        jobs = [
            replace(sample_job(n, *(f"{place}/{name}.png" for name in names)), exam=exam)
            for n, names in enumerate((("good", "good"), ("good", "hang"), ("good", "good")))
        ]
        try:
            results = list(workers.converted(jobs, 1, seconds=LIMIT))
        finally:
            server.terminate()
    assert [result.bad for result in results] == [[], [("ffdm_mlo", "decoder_hung")], []]
    assert results[1].meta["modalities"] == ["ffdm_cc"]
    assert len(caplog.messages) == 1  # of the second sample: no other was tried again
    assert list(folder.iterdir()) == []
