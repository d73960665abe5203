"""Checks of one machine that need no other process: packages, devices, memory, disks, clock, network."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from m4oe_ds.command_line import check_output
from m4oe_ds.data.shared_memory import FIX, FOLDER
from m4oe_ds.doctor.finding import Finding, bad, good, note
from m4oe_ds.errors import EnvironmentProblem

TESTED = {  # what the tests run with: the lines of constraints.txt
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "timm": "1.0.31",
    "numpy": "2.4.6",
    "deepspeed": "0.19.8",
    "pydicom": "3.0.2",
    "webdataset": "1.0.2",
}
_GB = 1e9


def packages() -> Iterable[Finding]:
    """Python and the packages whose versions matter."""
    yield good("python", platform.python_version())
    from m4oe_ds.compat import import_torchvision

    for name, tested in TESTED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield bad(name, "is not installed", "pip install m4oe_ds")
            continue
        same = version.partition("+")[0] == tested
        yield good(name, version if same else f"{version} (the tests run with {tested})")
    import_torchvision()
    import timm  # noqa: F401  # the import is the check


def devices() -> Iterable[Finding]:
    """GPUs, their memory, and NCCL."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        if built and Path("/dev/nvidia0").exists():
            yield bad("GPUs", f"torch was built for CUDA {built} but sees none", "check the driver with nvidia-smi")
        elif Path("/dev/nvidia0").exists():
            yield bad("GPUs", "there is one, but this torch is for CPUs", "install the torch of your CUDA release")
        else:
            yield note("GPUs", "none: training runs on the CPU, for tests and small models", "use a machine with GPUs")
        return
    for number in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        text = f"{of.name}, {total / _GB:.0f} GB, {free / _GB:.0f} GB free"
        if free < 0.8 * total:
            yield note(f"GPU {number}", text, "somebody else is using it: see nvidia-smi")
        else:
            yield good(f"GPU {number}", text)
    if not torch.cuda.is_bf16_supported():
        yield note("bf16", "these GPUs have none", "use ds_configs/fp16.json")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield good("NCCL", nccl)


def compilers() -> Iterable[Finding]:
    """What DeepSpeed's own operators are compiled with; the shipped JSONs need none of them."""
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        yield note("compiler", "no g++", "only needed for optimizers with torch_adam false, and offloading")
    else:
        yield good("compiler", Path(found).name)


def decoders() -> Iterable[Finding]:
    """Decoders of compressed DICOM files."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

    for uid in (JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless, RLELossless):
        decoder = get_decoder(uid)
        if decoder.is_available:
            yield good("DICOM", uid.name)
        else:
            yield bad("DICOM", f"no decoder for {uid.name}", "pip install pylibjpeg[openjpeg,rle] python-gdcm pyjpegls")


def memory(need_bytes: int = 0) -> Iterable[Finding]:
    """Memory of the host, and the limit that a container or a job sets."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup_limit()
    total = min(pages, limit or pages)
    text = f"{total / _GB:.0f} GB" + (" (limit of this job or container)" if limit and limit < pages else "")
    text += f", training needs some {need_bytes / _GB:.2g} GB" if need_bytes else ""
    if need_bytes > total:
        yield bad("host memory", text, "ask for more memory, or use fewer ranks on this machine")
    else:
        yield good("host memory", text)


def _cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def shared_memory(need_bytes: int, folder: str = FOLDER) -> Iterable[Finding]:
    """Free shared memory against what the reader processes put there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        yield bad("shared memory", f"no {folder}", "mount it, or set data.workers=0")
        return
    text = f"{usage.free / _GB:.2f} GB free in {folder}, {need_bytes / _GB:.2f} GB needed by the reader processes"
    if usage.free < need_bytes:
        yield bad("shared memory", text, FIX)
    else:
        yield good("shared memory", text)


def disk(folder: Path) -> Iterable[Finding]:
    """Space, speed and locks of the file system that a folder is on."""
    topic = f"disk of {folder}"
    try:
        check_output(folder, "--output")
    except EnvironmentProblem as error:
        yield bad(topic, error.what, error.fix)
        return
    above = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    usage = shutil.disk_usage(above)
    block, count = bytes(4_000_000), 16
    try:
        with tempfile.NamedTemporaryFile(dir=above) as file:
            started = time.perf_counter()
            for _ in range(count):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = count * len(block) / (time.perf_counter() - started)
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = True
            except OSError:
                locks = False
    except OSError as error:
        yield bad(topic, f"cannot be written to: {error.strerror}", "choose another folder")
        return
    text = f"{usage.free / _GB:.0f} GB free, writes {speed / 1e6:.0f} MB/s"
    if speed < 50e6:
        yield note(topic, text, "checkpoints will be slow: use a faster file system for --output")
    else:
        yield good(topic, text)
    if not locks:
        yield note(topic, "has no locks", "never start two runs in one folder: nothing would notice")


def reading(root: Path) -> Iterable[Finding]:
    """How fast shards are read."""
    topic = f"shards in {root}"
    shard = next(iter(sorted(root.glob("*/*.tar"))), None)
    if shard is None:
        yield note(topic, "none", "make some with `m4oe convert`")
        return
    started, count = time.perf_counter(), 0
    with shard.open("rb") as file:
        while count < 64_000_000 and (block := file.read(4_000_000)):
            count += len(block)
    yield good(topic, f"{count / 1e6:.0f} MB read at {count / 1e6 / (time.perf_counter() - started):.0f} MB/s")


def clock() -> Iterable[Finding]:
    """A clock that cannot be right: TLS, S3 signatures and file times depend on it."""
    now = time.gmtime()
    if now.tm_year < 2024:
        yield bad("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", now), "set it (chrony, ntpd)")
    else:
        yield good("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", now))


def network() -> Iterable[Finding]:
    """Interfaces, and which one the libraries were told to use."""
    names = [name for _, name in socket.if_nameindex()]
    chosen = {name: os.environ[name] for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if name in os.environ}
    for variable, value in chosen.items():
        wanted = value.lstrip("^=").split(",")
        if not value.startswith("^") and not any(name.startswith(tuple(wanted)) for name in names):
            yield bad(
                "network", f"{variable}={value}, interfaces: {', '.join(names)}", f"unset {variable} or correct it"
            )
    outside = [name for name in names if name != "lo"]
    if outside:
        yield good("network", ", ".join(outside))
    else:
        yield note("network", "only loopback", "one machine works; several need an interface")
