"""Shards over HTTP (a real nginx) and S3 (a real server of the protocol), with what goes wrong on the way."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from m4oe_ds.data import cache as caches
from m4oe_ds.data import sources
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.shard_reader import verify_shards
from m4oe_ds.errors import DataError, EnvironmentProblem
from tests.integration import commands, servers, shards

pytestmark = pytest.mark.integration
QUICK = sources.Retry(attempts=4, base_seconds=0.02, max_seconds=0.05, timeout_seconds=900.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("remote") / "shards")


@pytest.fixture(scope="module")
def web(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if servers.NGINX is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    with servers.nginx(data, tmp_path_factory.mktemp("nginx") / "server") as address:
        yield address


@pytest.fixture(scope="module")
def bucket(data: Path) -> Iterator[str]:
    with servers.bucket(data, "breasts") as address:
        yield address


def keys(root: str, split: str = "train", **options: Any) -> Counter[str]:
    stream = shards.stream(sources.join(root, split), find_card("embed"), 8, **options)
    return Counter(key for step in stream.epoch(0) for batch in step for key in batch.keys if key)


def shard_of(root: str | Path) -> tuple[str, Any]:
    manifest = Manifest.load(sources.join(root, "train"))
    shard = manifest.shards[0]
    return sources.join(sources.join(root, "train"), shard.name), shard


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["web", "bucket"])
@pytest.mark.parametrize("cached", [True, False])
def test_the_same_samples_from_anywhere(
    request: pytest.FixtureRequest, data: Path, tmp_path: Path, kind: str, cached: bool, workers: int
) -> None:
    address = request.getfixturevalue(kind)
    root = f"{address}/plain" if kind == "web" else address
    cache = Cache(tmp_path / "cache", 10**8, QUICK) if cached else None
    assert Manifest.load(sources.join(root, "train")).digest == Manifest.load(data / "train").digest
    assert verify_shards(sources.join(root, "train"), Manifest.load(data / "train")) == []
    assert keys(root, cache=cache, workers=workers) == keys(str(data))
    if cached:
        names = {shard.sha256 for shard in Manifest.load(data / "train").shards}
        assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == names


@pytest.mark.parametrize("kind", ["web", "bucket"])
def test_what_is_not_there_fails_at_once(
    request: pytest.FixtureRequest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request.getfixturevalue(kind)
    root = f"{address}/plain" if kind == "web" else address
    pauses: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", pauses.append)
    with pytest.raises(DataError, match="status 404"):
        Manifest.load(f"{root}/nowhere")
    if kind == "web":
        with pytest.raises(DataError, match="status 403"):
            sources.open_range(f"{address}/forbidden/x", 0, 4)
    assert pauses == []  # no retries


def test_a_server_that_keeps_failing_costs_bounded_time(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", pauses.append)
    with pytest.raises(DataError, match=r"after 4 attempts \(status 503\)"):
        sources.open_range(f"{web}/broken/x.tar?token=secret", 0, 10, QUICK)
    assert len(pauses) == 3
    assert max(pauses) <= QUICK.max_seconds
    with pytest.raises(DataError, match="cannot be read after 4 attempts") as caught:
        sources.open_range(f"http://user:word@127.0.0.1:{servers.free_port()}/x?token=secret", 0, 10, QUICK)
    assert "secret" not in str(caught.value)
    assert "word" not in str(caught.value)


def test_a_server_without_ranges_needs_the_cache(web: str, data: Path, tmp_path: Path) -> None:
    url, shard = shard_of(f"{web}/norange")
    with pytest.raises(DataError, match=r"no range requests.*data\.cache_dir"):
        sources.open_range(url, shard.offsets[0], shard.offsets[1], QUICK)
    assert keys(f"{web}/norange", cache=Cache(tmp_path, 10**8, QUICK)) == keys(str(data))


def test_a_slow_server_is_waited_for(web: str, data: Path, tmp_path: Path) -> None:
    url, shard = shard_of(f"{web}/slow")
    brief = replace(QUICK, timeout_seconds=1.0)  # between two pieces, of an answer that takes longer
    assert Cache(tmp_path, 10**8, brief).fetch(url, shard.bytes, shard.sha256).stat().st_size == shard.bytes


@pytest.mark.parametrize("fault", ["reset", "cut", "busy"])
@pytest.mark.parametrize("cached", [True, False])
def test_faults_that_pass_are_survived(web: str, data: Path, tmp_path: Path, fault: str, cached: bool) -> None:
    proxy = servers.SpoilingProxy(urlsplit(web).port or 0, fault, times=2)
    url, shard = shard_of(data)
    url = f"http://127.0.0.1:{proxy.port}/plain/train/{shard.name}"
    if cached:
        path = Cache(tmp_path, 10**8, QUICK).fetch(url, shard.bytes, shard.sha256)
        assert path.read_bytes() == (data / "train" / shard.name).read_bytes()
    else:
        found = sources.open_range(url, shard.offsets[0], shard.offsets[1], QUICK)
        assert found == (data / "train" / shard.name).read_bytes()[shard.offsets[0] : shard.offsets[1]]
    assert proxy.connections >= 3
    proxy.close()


@pytest.mark.parametrize("fault", ["reset", "cut"])
def test_faults_that_stay_end_in_one_line(web: str, data: Path, tmp_path: Path, fault: str) -> None:
    proxy = servers.SpoilingProxy(urlsplit(web).port or 0, fault, times=10**6)
    _, shard = shard_of(data)
    url = f"http://127.0.0.1:{proxy.port}/plain/train/{shard.name}"
    with pytest.raises(DataError, match="after 4 attempts") as caught:
        sources.open_range(url, shard.offsets[0], shard.offsets[1], QUICK)
    assert "\n" not in str(caught.value)
    proxy.close()


@pytest.mark.parametrize(("times", "good"), [(1, True), (5, False)])
def test_damage_on_the_way_is_found_by_the_checksum(
    web: str, data: Path, tmp_path: Path, times: int, good: bool
) -> None:
    proxy = servers.SpoilingProxy(urlsplit(web).port or 0, "flip", times)
    _, shard = shard_of(data)
    url = f"http://127.0.0.1:{proxy.port}/plain/train/{shard.name}"
    cache = Cache(tmp_path, 10**8, QUICK)
    if good:
        assert cache.fetch(url, shard.bytes, shard.sha256).read_bytes() == (data / "train" / shard.name).read_bytes()
    else:
        with pytest.raises(DataError, match="sha256 differs"):
            cache.fetch(url, shard.bytes, shard.sha256)
        assert not list(tmp_path.glob("*.tar"))
        assert not list(tmp_path.glob("*.part"))
    proxy.close()


def test_a_damaged_copy_is_fetched_again(web: str, data: Path, tmp_path: Path) -> None:
    url, shard = shard_of(f"{web}/plain")
    path = Cache(tmp_path, 10**8, QUICK).fetch(url, shard.bytes, shard.sha256)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = Cache(tmp_path, 10**8, QUICK).fetch(url, shard.bytes, shard.sha256)
    assert again.read_bytes() == (data / "train" / shard.name).read_bytes()


def test_the_cache_stays_in_its_bounds_and_forgets_the_oldest(web: str, data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(data / "train")
    assert len(manifest.shards) >= 3
    room = sum(sorted(shard.bytes for shard in manifest.shards)[-2:]) + 100
    cache = Cache(tmp_path, room, QUICK)
    for shard in (*manifest.shards[:2], manifest.shards[0], manifest.shards[2]):
        cache.fetch(f"{web}/plain/train/{shard.name}", shard.bytes, shard.sha256)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= room
        time.sleep(0.02)  # use times must differ
    left = {path.stem for path in tmp_path.glob("*.tar")}
    assert left == {manifest.shards[0].sha256, manifest.shards[2].sha256}
    assert keys(f"{web}/plain", cache=cache) == keys(str(data))
    with pytest.raises(DataError, match=r"data\.cache_gb"):
        Cache(tmp_path, 1000, QUICK).fetch(f"{web}/plain/x", 2000, "0" * 64)


def _fetch(url: str, size: int, sha256: str, folder: str) -> None:
    Cache(Path(folder), 10**8, QUICK).fetch(url, size, sha256)


def test_training_from_a_web_server_equals_training_from_disk(web: str, data: Path, tmp_path: Path) -> None:
    settings = [f"--set={item}" for item in (*shards.SMALL, "run.num_epochs=1", "run.log_every_steps=1")]
    runs = {}
    for name, root in (("disk", str(data)), ("web", f"{web}/plain")):
        where = [f"--set=data.root={root}", f"--set=data.cache_dir={tmp_path / 'cache'}"]
        arguments = ["--ds_config", "ds_configs/zero2.json", "--output", str(tmp_path / name), *settings, *where]
        done = commands.train(arguments, ranks=2)
        assert done.returncode == 0, done.stdout + done.stderr
        runs[name] = commands.losses(tmp_path / name)
    assert len(runs["disk"]) == 3
    assert runs["disk"] == runs["web"]
    assert any((tmp_path / "cache").rglob("*.tar"))


def test_two_processes_fetch_a_shard_once(web: str, data: Path, tmp_path: Path) -> None:
    proxy = servers.SpoilingProxy(urlsplit(web).port or 0, "none", times=0)
    _, shard = shard_of(data)
    url = f"http://127.0.0.1:{proxy.port}/plain/train/{shard.name}"
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(target=_fetch, args=(url, shard.bytes, shard.sha256, str(tmp_path / "cache"))) for _ in range(3)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(900)
        assert process.exitcode == 0
    assert proxy.connections == 1
    proxy.close()


def test_missing_credentials_and_unknown_addresses_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials of other tests
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(EnvironmentProblem, match="AWS_ACCESS_KEY_ID"):
        sources.open_range("s3://bucket/x", 0, 1, sources.Retry(attempts=1, timeout_seconds=0.77))
    with pytest.raises(DataError, match="ftp://"):
        sources.is_remote("ftp://host/x")
    assert caches.shown("https://me:pw@host:8/a/b?sig=1") == "https://host:8/a/b"
