"""Epochs, cadence, evaluation and stopping."""

from __future__ import annotations

import contextlib
import itertools
import logging
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import CheckpointError, DataError, UserError
from m4oe_ds.evaluation.examples import exams_shown
from m4oe_ds.evaluation.inference import Predictions, predict_split
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models.interface import ModelOutput, ModelSpec
from m4oe_ds.models.parts import layer_name
from m4oe_ds.parallel import reduce
from m4oe_ds.parallel.deepspeed_moe import ep_size_of
from m4oe_ds.parallel.exchange import bytes_sent
from m4oe_ds.runs import assemble
from m4oe_ds.runs.folder import BEST, LATEST, checkpoint_tag
from m4oe_ds.training import gradient_policy, schedule, trackers
from m4oe_ds.training.checkpoint import CheckpointStore, Position
from m4oe_ds.training.engine import compute_dtype
from m4oe_ds.training.patience import Patience
from m4oe_ds.training.preemption import StopRequest
from m4oe_ds.training.profiling import StepProfiler
from m4oe_ds.training.records import Recorder
from m4oe_ds.training.step import StepReport, check_finite, train_step
from m4oe_ds.training.throughput import Arithmetic, arithmetic
from m4oe_ds.training.validation import Best, Observer, Validation

_logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How training ended.

    Attributes:
        position: where it stands.
        stopped_by: signal that stopped it (a checkpoint to resume from was saved); 0 = none.
        best_tag: checkpoint of the best weights; None = there is no checkpoint.
        seconds: since it was started.
        early: why it ended before its last step without a signal; empty = it did not.
    """

    position: Position
    stopped_by: int
    best_tag: str | None
    seconds: float
    early: str = ""


class Loop:
    """Training of one engine on one set of shards.

    Args:
        config: the resolved configuration.
        engine: the engine that :func:`m4oe_ds.training.engine.create` made.
        spec: specification of the model.
        objective: what is trained.
        manifests: manifests by split, ``train`` required.
        store: where checkpoints are kept.
        folder: run folder.
        micro: samples of a micro-batch.
        accumulation: micro-batches of a step.
        profile_steps: steps to record with the profiler.
        observer: makes what looks on at every validation; None = nothing does.
    """

    def __init__(
        self,
        config: Config,
        engine: Any,
        spec: ModelSpec,
        objective: Objective,
        manifests: dict[str, Manifest],
        store: CheckpointStore,
        folder: Path,
        micro: int,
        accumulation: int,
        profile_steps: int = 0,
        observer: Callable[[], Observer] | None = None,
    ) -> None:
        self.config, self.engine, self.spec, self.objective = config, engine, spec, objective
        self.manifests, self.store, self.folder = manifests, store, folder
        self.micro, self.accumulation = micro, accumulation
        self.dtype = compute_dtype(engine)
        self.train = assemble.stream(config, "train", spec, micro, accumulation, manifests)
        self.steps_per_epoch = self.train.steps_per_epoch
        self.total_steps = config.run.num_epochs * self.steps_per_epoch
        if config.run.max_steps:
            self.total_steps = min(self.total_steps, config.run.max_steps)
        self.policy = gradient_policy.policy(config.loss.gradient_policy, **config.loss.gradient_options)
        self.base_rates = [group["lr"] for group in engine.optimizer.param_groups]
        # that of the JSON, whatever the factors by part
        self.base_rate = float((engine.optimizer_params() or {}).get("lr", self.base_rates[0]))
        self.global_batch = micro * accumulation * reduce.world_size()
        self.profile_steps = profile_steps
        self.arithmetic = (
            arithmetic(config, self.dtype, micro, accumulation, ep_size_of(engine)) if reduce.rank() == 0 else None
        )
        self.position = Position(0, 0, 0, 0)
        self.validation = Validation(
            self.predict,
            spec.tasks,
            config.run.checkpoint.metric,
            config.run.eval_every_epochs,
            available="val" in manifests,
            observer=observer if trackers.TENSORBOARD in trackers.chosen(config.run) else None,
            sum_over_ranks=lambda sums: reduce.sum_over_ranks(sums.to(engine.device)),
            draws=reduce.rank() == 0,
            patience=Patience(config.run.patience, config.run.checkpoint.metric, config.run.min_improvement),
        )
        self.most_batches: int | None = None  # of a split that is predicted, on each rank

    def resume(self, tag: str, store: CheckpointStore | None = None) -> None:
        """Continues from a checkpoint; the data stream continues after the last sample it used."""
        self.position, progress = (store or self.store).load(self.engine, tag)
        if progress["global_batch"] != self.global_batch:
            raise CheckpointError(
                f"a step had {progress['global_batch']} samples and now has {self.global_batch}",
                f"checkpoint {tag}",
                "keep train_batch_size of the DeepSpeed JSON, or --resume never",
            )
        self.policy.load_state_dict(progress["gradient_policy"])
        self.validation.best = Best(progress["best"])
        self.validation.patience.load_state_dict(progress.get("patience"))

    def run(self) -> Outcome:
        """Trains to the end, or until a signal asks to stop.

        Collectives: every rank must call it.
        """
        started = time.monotonic()
        run = self.config.run
        stopped = 0
        with (
            StopRequest() as request,
            Recorder(
                self.folder,
                self.total_steps,
                enabled=reduce.rank() == 0,
                trackers=trackers.chosen(run),
                config=trackers.shareable(self.config, getattr(self.engine, "config", None) or {}),
                first_step=self.position.step,
                epochs=run.num_epochs,
            ) as recorder,
            contextlib.closing(StepProfiler(self.folder, self.profile_steps, recorder.say)) as profiler,
            _anomalies(run.detect_anomaly),
        ):
            while self.position.step < self.total_steps and not stopped and not self._gives_up():
                stopped = self._epoch(recorder, request, profiler)
        if self.position.step > 0 and self.store.agreed_pointer(LATEST) != checkpoint_tag(self.position.step):
            self._save()
        best, seconds = self.store.agreed_pointer(BEST), time.monotonic() - started
        return Outcome(self.position, stopped, best, seconds, self._early() if self._gives_up() else "")

    def _gives_up(self) -> bool:
        """Whether no improvement is waited for any longer. Collectives: one all-reduce of one number."""
        flag = torch.tensor(float(self.validation.patience.exhausted), device=self.engine.device)
        return self.position.step < self.total_steps and bool(reduce.maximum_over_ranks(flag))

    def _early(self) -> str:
        run, waited = self.config.run, self.validation.patience.waited
        return (
            f"stopped early after epoch {self.position.epoch} of {run.num_epochs}: validation "
            f"{run.checkpoint.metric} was not better for {waited} validations (run.patience={run.patience})"
        )

    def _epoch(self, recorder: Recorder, request: StopRequest, profiler: StepProfiler) -> int:
        """Steps to the end of the epoch (or of training); returns the signal that asked to stop, if any."""
        run = self.config.run
        epoch = self.position.epoch
        meter = _Meter()
        self.engine.train()
        if self.objective.model_loss is not None:
            self.objective.model_loss.epoch = epoch
        for batches in profiler.batches(self.train.epoch(epoch, self.position.samples_in_epoch)):
            step = self.position.step  # steps done before this one
            log = (step + 1) % run.log_every_steps == 0 or step + 1 == self.total_steps or step == 0
            factor = schedule.factor(self.config.schedule, step, self.steps_per_epoch, self.total_steps)
            schedule.apply(self.engine, self.base_rates, factor)
            every = run.conflict_every_steps
            report = train_step(
                self.engine,
                batches,
                self.objective,
                self.dtype,
                policy=self.policy,
                conflict=bool(every) and (step + 1) % every == 0,
                observe=log,
                where=f"step {step + 1}",
            )
            used = min(self.global_batch, self.train.num_samples - self.position.samples_in_epoch)
            inside = self.position.samples_in_epoch + used
            over = self.train.steps_left(inside) == 0
            self.position = Position(step + 1, epoch + over, 0 if over else inside, self.position.samples + used)
            meter.add(used)
            recorder.step()
            profiler.step()
            if log or report.conflict:
                self._log(recorder, report, self.base_rate * factor, epoch, meter.read(self.arithmetic))
            stop = request.agreed(self.engine.device)
            if over or self.position.step >= self.total_steps:  # max_steps may end inside an epoch
                self._end_of_epoch(recorder, epoch)
                self.engine.train()
            elif stop or (run.checkpoint.every_steps and (step + 1) % run.checkpoint.every_steps == 0):
                self._save()
            if stop or self.position.step >= self.total_steps:
                return stop
        return 0

    def _log(self, recorder: Recorder, report: StepReport, rate: float, epoch: int, speed: dict[str, float]) -> None:
        figures = report.collect(self.objective)
        for name, share in figures.pop("expert_share", {}).items():
            recorder.distribution(f"routing/{name}/expert_share", share, self.position.step)
        check_finite(figures, self.position.step)
        cuda = torch.cuda.is_available()
        memory = (
            torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        recorder.write(
            {
                "step": self.position.step,
                "epoch": epoch,
                "samples": self.position.samples,
                **figures,
                "router_scale": self._router_scales(),
                "lr": rate,
                "skipped_steps": int(getattr(self.engine, "skipped_steps", 0)),
                **speed,
                "max_memory_bytes": memory,
            }
        )

    def _router_scales(self) -> dict[str, float]:
        """Learned router scales by layer; under ZeRO-3 a partitioned scale has no local value and is left out."""
        return {
            layer_name(name.removesuffix(".router.scale")): float(parameter.detach().float().mean())
            for name, parameter in self.engine.module.named_parameters()
            if name.endswith("router.scale") and parameter.numel()
        }

    def _end_of_epoch(self, recorder: Recorder, epoch: int) -> None:
        """Validation where it is due, and a checkpoint."""
        best = not self.validation.selects
        if self.validation.due(epoch, last=self.position.step >= self.total_steps):
            verdict = self.validation.run(self.folder)
            best = verdict.best
            recorder.write(verdict.record(self.position.step, epoch))
            if verdict.drawn:
                recorder.figures("validation", verdict.drawn, self.position.step)
            text = verdict.line() + self.validation.patience.note()
            recorder.say(f"epoch {epoch + 1} of {self.config.run.num_epochs}: {text}")
        self._save(best=best)

    def _save(self, *, best: bool = False) -> str:
        reduce.average_running_statistics(self.engine.module)
        progress = {
            "global_batch": self.global_batch,
            "gradient_policy": self.policy.state_dict(),
            "best": self.validation.best.defined,
            "patience": self.validation.patience.state_dict(),
        }
        return self.store.save(self.engine, self.position, progress, best=best)

    def predict(
        self, split: str, num_examples: int = 0, observe: Callable[[Batch, ModelOutput], None] | None = None
    ) -> Predictions:
        """Predictions of a split with the current weights; ``observe`` is given every batch of this rank and its
        output.

        Collectives: every rank must call it.
        """
        if split not in self.manifests:
            raise DataError(f"no split {split!r} was loaded", fix=f"known: {', '.join(self.manifests)}")
        micro = self.config.evaluation.micro_batch or self.micro
        stream = assemble.stream(self.config, split, self.spec, micro, 1, self.manifests)
        reduce.average_running_statistics(self.engine.module)
        self.engine.eval()
        return predict_split(
            self.engine,
            itertools.islice(stream.evaluation(), self.most_batches),
            self.spec,
            self.objective,
            self.engine.device,
            self.dtype,
            num_examples,
            assemble.prior_correction(self.config, self.spec, self.manifests["train"]),
            observe,
            exams_shown(self.manifests[split], num_examples),
        )


class _Meter:
    """Speed since it was last read."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._clock, self._samples, self._steps, self._sent = time.monotonic(), 0, 0, bytes_sent()

    def add(self, samples: int) -> None:
        """Counts one step of ``samples`` samples over all ranks."""
        self._samples += samples
        self._steps += 1

    def read(self, work: Arithmetic | None) -> dict[str, float]:
        """``samples_per_s`` over all ranks; bytes of all-to-alls per step and FLOP/s of this rank, since last read."""
        seconds = max(time.monotonic() - self._clock, 1e-9)
        figures = {
            "samples_per_s": self._samples / seconds,
            "all_to_all_bytes_per_step": (bytes_sent() - self._sent) / max(self._steps, 1),
            **({} if work is None else work.figures(self._steps / seconds)),
        }
        self._restart()
        return figures


@contextlib.contextmanager
def _anomalies(enabled: bool) -> Iterator[None]:
    """Names the operation whose gradient is not a number; autograd's own message comes before it as a warning."""
    try:
        with torch.autograd.set_detect_anomaly(enabled, check_nan=True):
            yield
    except RuntimeError as error:
        if not enabled or "returned nan values" not in str(error):
            raise
        raise UserError(str(error), "backward pass", "the warning above shows the line of the forward pass") from None
