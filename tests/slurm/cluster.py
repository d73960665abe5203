"""A real SLURM cluster on loopback: munged, slurmctld and two slurmd, on free ports, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun", "setpriv")


def unavailable() -> str:
    """Why no cluster can be started here; empty if one can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: install slurmctld, slurmd, slurm-client, munge and util-linux"
    return "" if os.geteuid() == 0 else "slurmd starts jobs of its users and needs root"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Cluster:
    """Two nodes ``n1`` and ``n2`` of two CPUs, a partition ``work`` and one that preempts it, ``urgent``.

    Args:
        folder: short, empty folder: sockets live in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
        }
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_raised: object) -> None:
        if any(name == "slurmd" for name, _ in self._daemons):
            self._end_jobs()
        for _, process in reversed(self._daemons):
            process.terminate()
        for _, process in reversed(self._daemons):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _end_jobs(self) -> None:
        """Ranks of a test that failed would outlive their slurmd."""
        with contextlib.suppress(subprocess.SubprocessError):
            deadline = time.monotonic() + 20
            while self.run("squeue", "-h", "-o", "%A") and time.monotonic() < deadline:
                self.run("scancel", "--quiet", "--state=PENDING", "--user=root")
                self.run("scancel", "--quiet", "--signal=KILL", "--full", "--state=RUNNING", "--user=root")
                time.sleep(0.5)

    def _configure(self) -> None:
        control, first, second = _free_ports(3)
        host = socket.gethostname().split(".")[0]
        # jobs take their rendezvous port from their number: two clusters on one machine must not count alike
        first_job = random.randint(1, 15000)
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 "
            f"Features={kind} Gres=gpu:{kind}:2"
            for i, port, kind in ((1, first, "a100"), (2, second, "l40"))
        )
        (self.folder / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self.folder}/munge.sock,cred_expire=10
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
FirstJobId={first_job}
GresTypes=gpu
KillWait=10
MinJobAge=600
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
InactiveLimit=0
{nodes}
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=UNLIMITED State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=urgent Nodes=n1,n2 MaxTime=UNLIMITED State=UP PriorityTier=10 PreemptMode=OFF
"""
        )
        for number in range(2):  # stand for device files, so that GPUs can be asked for and counted
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(
            "AutoDetect=off\n"
            + "".join(
                f"NodeName=n{i} Name=gpu Type={kind} File={self.folder}/gpu[0-1]\n"
                for i, kind in ((1, "a100"), (2, "l40"))
            )
        )
        (self.folder / "state").mkdir()
        for node in ("n1", "n2"):
            (self.folder / f"spool-{node}").mkdir()

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munge.pid",
            f"--log-file={self.folder}/munge.log",
            f"--seed-file={self.folder}/munge.seed",
        )
        self._wait(lambda: (self.folder / "munge.sock").exists(), "munged")
        conf = str(self.folder / "slurm.conf")
        self._daemon("slurmctld", "-D", "-f", conf)
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-f", conf, "-N", node)
        self._wait(lambda: self.run("sinfo", "-h", "-N", "-p", "work", "-o", "%T").split() == ["idle", "idle"], "nodes")

    def _daemon(self, name: str, *arguments: str) -> None:
        path = shutil.which(name) or name
        log = (self.folder / f"{name}-{len(self._daemons)}.out").open("wb")
        # setpriv: a test process that is killed takes its daemons along
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", path, *arguments],
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._daemons.append((name, process))

    def _wait(self, ready: Any, what: str, seconds: float = 900) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [name for name, process in self._daemons if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(
                    f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.folder.glob("*.[lo][ou][gt]")
                )
                raise RuntimeError(f"{what} did not come up; ended: {ended}\n{logs}")
            time.sleep(0.2)

    def run(self, *command: str, check: bool = False, **extra: str) -> str:
        """Standard output of a SLURM command."""
        done = subprocess.run(
            command, env={**self.environment, **extra}, capture_output=True, text=True, timeout=900, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, script: Path, *options: str, **variables: str) -> str:
        """Job id of ``sbatch OPTIONS script`` with these variables exported."""
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)],
            env={**self.environment, **variables},
            cwd=script.parents[1],
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            raise AssertionError(f"sbatch {script.name}: {done.stdout}{done.stderr}")
        return done.stdout.strip().split(";")[0]

    def state(self, job: str) -> list[str]:
        """States of a job, one per array task."""
        return re.findall(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))

    def wait(self, job: str, seconds: float = 900, until: tuple[str, ...] = ()) -> list[str]:
        """States of a job once all its tasks ended, or once one is in ``until``."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}
        deadline = time.monotonic() + seconds
        while True:
            states = self.state(job)
            if states and (set(states) <= final or set(states) & set(until)):
                return states
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is still {states}\n{self.run('squeue', '-a')}")
            time.sleep(0.3)
