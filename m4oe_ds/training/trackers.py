"""Who is told a run's figures besides ``log.jsonl``: TensorBoard, services by their clients, or a class of one's own.

A tracker has three methods, :class:`Tracker`; ``run.trackers`` names it. Figures and the configuration are all it is
given: no sample, no key, no picture and no path. Rank 0 alone has trackers, and one that fails does not end a run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from m4oe_ds.config import Config, RunConfig, to_dict
from m4oe_ds.errors import ConfigError, EnvironmentProblem
from m4oe_ds.models import outside
from m4oe_ds.runs.folder import RunFolder

TENSORBOARD = "tensorboard"
# /a, x:/a, x=/a, ~/a, $HOME/a, ../a, C:\a, \\host\a; not vit_base/16, timm/name, hf-hub:timm/name
_PLACE = re.compile(r"(^|[^\w.)\]}])(/|\\\\)\S|(^|\W)(~[\w.-]*|\.\.?|\$\{?\w+\}?)[/\\]|(^|\W)[A-Za-z]:\\")
PROJECT = "m4oe"  # of the services, unless their own variables name another


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told at the start.

    Attributes:
        name: of the run folder.
        folder: run folder, for files of the tracker.
        config: the configuration as resolved, without folders, and the DeepSpeed JSON under ``deepspeed``.
        first_step: steps done before; larger than 0 for a run that goes on.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    first_step: int = 0


class Tracker(Protocol):
    """What ``run.trackers`` can name; made without arguments."""

    def start(self, run: TrackedRun) -> None:
        """Called once, before the first figure."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name, such as ``train/loss/total`` or ``validation/auroc/<task>``."""

    def finish(self, failed: bool) -> None:
        """Called once, at the end of training.

        Args:
            failed: training ended by an exception; not by a signal, after which the run goes on later.
        """


def chosen(run: RunConfig) -> tuple[str, ...]:
    """Names of the trackers of a run; ``run.tensorboard: false`` takes that one out."""
    return tuple(dict.fromkeys(name for name in run.trackers if run.tensorboard or name != TENSORBOARD))


def make(name: str) -> Tracker:
    """A tracker by its name or as ``package.module:Class``.

    Raises:
        ConfigError: there is no such class, its module cannot be imported, or it lacks a method.
        EnvironmentProblem: its package is not installed.
    """
    if name in _BUILT_IN:
        package, kind = _BUILT_IN[name]
        if importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(f"{name} is not installed", "run.trackers", f"pip install 'm4oe_ds[{name}]'")
        return kind()
    found = outside.load(name, "run.trackers")
    if lacking := [method for method in ("start", "log", "finish") if not callable(getattr(found, method, None))]:
        raise ConfigError(f"{name} has no {', '.join(lacking)}", "run.trackers", "a tracker has start, log and finish")
    tracker: Tracker = found()
    return tracker


def shareable(config: Config, ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without where things lie: of whatever names a place on this machine, the last name alone.

    Args:
        config: of the run.
        ds_config: the DeepSpeed JSON.
    """
    tree = to_dict(config)
    for section, key in (  # folders, which may be relative to the current one
        (tree["data"], "root"),
        (tree["data"], "dataset"),
        (tree["data"], "cache_dir"),
        (tree["data"]["phantom"], "root"),
        (tree["model"], "init_from"),
        (tree["model"]["embedder"], "weights"),
    ):
        section[key] = _last(str(section[key]))
    found: dict[str, Any] = _without_paths({**tree, "deepspeed": dict(ds_config)})
    return found


def _without_paths(value: Any) -> Any:
    """Nested values, whose texts with an absolute path, an address or a home folder in them are cut to the last name.

    ``local-dir:/home/...`` is one, too, and what a launcher or a path of DeepSpeed's JSON may have.
    """
    if isinstance(value, Mapping):
        return {_without_paths(key): _without_paths(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(one) for one in value]
    return _last(value) if isinstance(value, str) and _PLACE.search(value) else value


def _last(text: str) -> str:
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


class TensorBoard:
    """Events in the run folder, one TensorBoard run for each of ``train`` and ``validation``.

    A figure has the same tag in both, so that its curves lie in one chart. Also takes histograms and pictures.
    """

    def __init__(self) -> None:
        self._writers: dict[str, Any] = {}
        self._run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> None:
        """See :meth:`Tracker.start`."""
        self._run = run
        if not run.config:
            return
        writer = self._writer("train")
        text = yaml.safe_dump(dict(run.config), sort_keys=False, default_flow_style=None, width=100)
        writer.add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()), run.first_step)
        if not run.first_step:
            from torch.utils.tensorboard.summary import hparams

            plain = {key: value for key, value in flat(run.config).items() if isinstance(value, (int, float, str))}
            for summary in hparams(plain, {"loss/total": 0.0}):
                writer.file_writer.add_summary(summary)

    def _writer(self, kind: str) -> Any:
        if kind not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            assert self._run is not None
            path = RunFolder(self._run.folder).tensorboard / self._run.name / kind
            self._writers[kind] = SummaryWriter(str(path), purge_step=self._run.first_step + 1)
        return self._writers[kind]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        for name, value in values.items():
            kind, _, tag = name.partition("/")
            self._writer(kind).add_scalar(tag, value, step)

    def distribution(self, name: str, values: Sequence[float], step: int) -> None:
        """A histogram of training."""
        self._writer("train").add_histogram(name, np.asarray(values), step)

    def figures(self, kind: str, made: Mapping[str, Any], step: int) -> None:
        """Matplotlib figures for the image tab; they are closed afterwards."""
        for name, figure in made.items():
            self._writer(kind).add_figure(name, figure, step)

    def finish(self, failed: bool) -> None:
        """See :meth:`Tracker.finish`; events do not say how a run ended."""
        for writer in self._writers.values():
            writer.close()


class WandB:
    """Weights & Biases, by its client ``wandb`` (``WANDB_MODE=offline`` writes into the run folder only).

    What the client would send of the machine by itself (host, user, command line, code, console) is switched off.
    """

    def start(self, run: TrackedRun) -> None:
        """See :meth:`Tracker.start`; a run that goes on continues its record."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            host="",
            silent=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            config=dict(run.config),
            dir=str(run.folder),
            id=_known(run, "wandb"),
            resume="allow",
            settings=settings,
        )
        _remember(run, "wandb", self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        self._run.log(dict(values), step=step)

    def finish(self, failed: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """MLflow, by its client: the server of ``MLFLOW_TRACKING_URI``, or files in the run folder."""

    def start(self, run: TrackedRun) -> None:
        """See :meth:`Tracker.start`; a run that goes on continues its record."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        store = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not store:
            # the small client writes files of this kind only, and wants to be told that this is meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = (run.folder / "mlruns").absolute().as_uri()
        # not the functions of its module, which add user and script to every run
        self._client = MlflowClient(store)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        known = _known(run, "mlflow")
        self._id = known or self._client.create_run(experiment, run_name=run.name).info.run_id
        if known is None:
            _remember(run, "mlflow", self._id)
            items = [Param(key, str(value)[:500]) for key, value in flat(run.config).items()]
            for first in range(0, len(items), 100):  # most that a request may hold
                self._client.log_batch(self._id, params=items[first : first + 100])
        else:
            self._client.update_run(self._id, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(name, value, now, step) for name, value in values.items()]
        for first in range(0, len(items), 1000):
            self._client.log_batch(self._id, metrics=items[first : first + 1000])

    def finish(self, failed: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


_BUILT_IN: dict[str, tuple[str, type[Any]]] = {
    TENSORBOARD: ("tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
    "mlflow": ("mlflow", MLflow),
}


def _known(run: TrackedRun, service: str) -> str | None:
    """Under which identity a service knows a run that goes on."""
    path = RunFolder(run.folder).trackers
    if not run.first_step or not path.is_file():
        return None
    found: str | None = json.loads(path.read_text(encoding="utf-8")).get(service)
    return found


def _remember(run: TrackedRun, service: str, identity: str) -> None:
    path = RunFolder(run.folder).trackers
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, service: identity}) + "\n", encoding="utf-8")
