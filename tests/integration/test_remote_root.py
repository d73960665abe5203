"""One's own data below an address: the shards of a conversion of the same files here, whatever the server does."""

from __future__ import annotations

import base64
import http.server
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from data_tools.convert import ConvertOptions, convert, fetch, workers
from data_tools.convert.images import convert_sample
from data_tools.convert.sample import SampleJob, SampleResult
from m4oe_ds import cli
from m4oe_ds.data import sources
from m4oe_ds.data.roots import root_of
from m4oe_ds.errors import DataError
from tests.integration import servers
from tests.unit.data_tools.card_cases import CARD, Row, rows, write_case, write_table

pytestmark = pytest.mark.integration
SECRET = "0123456789abcdef0123456789abcdef"
ODD = "photos/left eye #1 ü 100%?.png"  # a name that is no address as it stands
NAMED = "photos/2.png"


def table() -> list[Row]:
    """The rows, one of them with a file of an odd name."""
    found = rows(12)
    found[1]["photo"] = ODD
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as a server has them; the card lies elsewhere."""
    root = tmp_path_factory.mktemp("own") / "data"
    (root.parent / "secret").write_text(SECRET)
    write_case(root, table=table()).rename(root.parent / "eyes.yaml")
    return root


@pytest.fixture(scope="module")
def web(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if servers.NGINX is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    with servers.nginx(data, tmp_path_factory.mktemp("nginx") / "server") as address:
        yield f"{address}/plain"


@pytest.fixture(scope="module")
def bucket(data: Path) -> Iterator[str]:
    with servers.bucket(data, "eyes") as address:
        yield address


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    pauses: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", pauses.append)
    return pauses


def run(data: Path, root: str, out: Path, **more: Any) -> None:
    given: dict[str, Any] = {"card_path": data.parent / "eyes.yaml", "salt_file": data.parent / "secret"}
    given |= {"workers": 0, "samples_per_shard": 5}
    convert(ConvertOptions(root=root_of(root), out=out, **(given | more)))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a conversion but its page."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".tar", ".json")
    }


@pytest.fixture(scope="module")
def here(data: Path) -> dict[str, bytes]:
    """The conversion of the files here."""
    out = data.parent / "shards"
    run(data, str(data), out)
    made = content(out)
    assert sum(name.endswith(".tar") for name in made) >= 3
    return made


@pytest.mark.parametrize(("kind", "count"), [("web", 0), ("web", 2), ("bucket", 0), ("bucket", 2)])
def test_the_same_bytes_from_anywhere(
    request: pytest.FixtureRequest, data: Path, here: dict[str, bytes], tmp_path: Path, kind: str, count: int
) -> None:
    run(data, request.getfixturevalue(kind), tmp_path / "out", workers=count)
    assert content(tmp_path / "out") == here


def test_no_more_than_one_sample_is_here_at_a_time(
    data: Path, web: str, here: dict[str, bytes], tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(job: SampleJob) -> SampleResult:
        assert not fetch.is_away(job)
        seen.append(sum(path.is_file() for path in temporary.rglob("*")))
        return convert_sample(job)

    monkeypatch.setattr(workers, "convert_sample", watched)
    run(data, web, tmp_path / "out")
    assert max(seen) == 4  # photograph, volume and their masks
    assert min(seen) >= 1
    assert content(tmp_path / "out") == here


@pytest.mark.parametrize(("fault", "method"), [("busy", "HEAD"), ("busy", "GET"), ("cut", "GET"), ("reset", "GET")])
def test_faults_that_pass_are_survived(
    data: Path, web: str, here: dict[str, bytes], tmp_path: Path, quick: list[float], fault: str, method: str
) -> None:
    proxy = servers.SpoilingProxy(urlsplit(web).port or 0, fault, 5, method)
    run(data, f"http://127.0.0.1:{proxy.port}/plain", tmp_path / "out")
    assert content(tmp_path / "out") == here
    assert len(quick) == 5
    proxy.close()


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_server_that_keeps_failing_ends_in_one_line_without_names(
    data: Path, web: str, tmp_path: Path, quick: list[float], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    proxy = servers.SpoilingProxy(urlsplit(web).port or 0, "busy", 0, method)
    real = sources.exists

    def exists(url: str) -> bool:
        proxy.left = 10**6  # once the table is here
        return real(url)

    monkeypatch.setattr(sources, "exists", exists)
    with pytest.raises(DataError, match=r"after 6 attempts \(status 503\)") as caught:
        run(data, f"http://me:word@127.0.0.1:{proxy.port}/plain?sig=abc", tmp_path / "out")
    said = str(caught.value)
    assert "\n" not in said
    assert not any(word in said for word in ("me:", "word", "abc", "photos", "scans", ".png", ".nii", "eye0"))
    assert ("row 2" if method == "HEAD" else "of sample my-eyes-") in said
    proxy.close()


def test_a_file_that_is_not_there_counts_as_it_does_here(data: Path, web: str, tmp_path: Path) -> None:
    away = data / "away.png"
    (data / NAMED).rename(away)
    try:
        said = {}
        for root in (str(data), web):
            with pytest.raises(DataError) as caught:
                run(data, root, tmp_path / "none")
            said[root] = str(caught.value)
        assert said[web] == said[str(data)]
        assert "1 of 9 files of photo are not there, first in row 4" in said[web]
        run(data, str(data), tmp_path / "here", max_missing=0.2)
        run(data, web, tmp_path / "there", max_missing=0.2)
        assert content(tmp_path / "there") == content(tmp_path / "here")
    finally:
        away.rename(data / NAMED)


def test_a_file_that_vanishes_stops_the_conversion_which_then_goes_on(
    data: Path, web: str, here: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = data / "away.png"
    (data / NAMED).rename(away)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sources, "exists", lambda url: not url.endswith("phantom.json"))
            with pytest.raises(DataError, match=r"a file of photo of sample my-eyes-\w+-l cannot be fetched.*404"):
                run(data, web, tmp_path / "out", workers=1, samples_per_shard=1)
        kept = len(list(tmp_path.rglob("*.tar")))
        assert kept > 0
    finally:
        away.rename(data / NAMED)
    run(data, web, tmp_path / "out", samples_per_shard=1)
    run(data, str(data), tmp_path / "here", samples_per_shard=1)
    assert len(list((tmp_path / "out").rglob("*.tar"))) > kept
    assert content(tmp_path / "out") == content(tmp_path / "here")


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("up", "photo", "photos/../../secret.png", "1 path of photo outside"),
        ("root", "photo", "/etc/passwd", "1 path of photo outside"),
        ("host", "photo", "http://169.254.169.254/x.png", "1 path of photo outside"),
        ("series", "fluid", "fluid/series", "1 path of fluid without the suffix of a file, first in row 3"),
        ("uid", "fluid", "fluid/1.2.840.7", "folders on a server cannot be listed; name one file for each volume"),
        ("picture of a folder", "photo", "scans", "1 of 9 files of photo are not there, first in row 3"),
    ],
)
def test_names_that_no_server_is_asked_for(
    data: Path, web: str, tmp_path: Path, name: str, column: str, value: str, said: str
) -> None:
    changed = table()
    changed[1][column] = value
    other = f"{name.replace(' ', '-')}.csv"
    write_table(data / other, changed)
    card = tmp_path / "other.yaml"
    card.write_text(CARD.replace("cases.csv", other))
    try:
        with pytest.raises(DataError, match=said) as caught:
            run(data, web, tmp_path / "out", card_path=card)
    finally:
        (data / other).unlink()
    assert value not in str(caught.value)


def test_a_wrong_pattern_and_a_table_that_is_not_there(data: Path, web: str, tmp_path: Path) -> None:
    card = tmp_path / "other.yaml"
    card.write_text(CARD.replace("scans/{eye}", "scan/{eye}"))
    with pytest.raises(DataError, match=r"none of the 12 files of scan is there.*--root http://127"):
        run(data, web, tmp_path / "out", card_path=card)
    card.write_text(CARD.replace("cases.csv", "case.csv"))
    with pytest.raises(DataError, match=r"plain: the table case\.csv is not here; check `source\.table`"):
        run(data, web, tmp_path / "out", card_path=card)
    (data / "bad.csv").write_bytes(b"\xff\xfe\x00")
    card.write_text(CARD.replace("cases.csv", "bad.csv"))
    with pytest.raises(DataError, match=r"^http://127.*/plain/bad\.csv: is not a readable table"):
        run(data, web, tmp_path / "out", card_path=card)
    (data / "bad.csv").unlink()


class _Locked(http.server.SimpleHTTPRequestHandler):
    """Serves those who give a name, a word and a signature."""

    def send_head(self) -> Any:
        given = self.headers.get("Authorization", "")
        if given != f"Basic {base64.b64encode(b'me:w@rd').decode()}" or not self.path.endswith("?sig=a%2Fb"):
            self.send_error(401)
            return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_credentials_open_the_server_and_are_never_said(
    data: Path, here: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Locked, directory=str(data))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        run(data, f"http://me:w%40rd@{place}?sig=a%2Fb", tmp_path / "out")
        assert content(tmp_path / "out") == here
        card = shutil.copy(data.parent / "eyes.yaml", tmp_path)
        assert cli.main(["card", "check", str(card), "--root", f"http://me:w%40rd@{place}?sig=a%2Fb"]) == 0
        printed = capsys.readouterr().out
        assert f"--root http://{place}" in printed
        for wrong in (f"http://me:w0rd@{place}?sig=a%2Fb", f"http://me:w%40rd@{place}?sig=w0rd"):
            assert cli.main(["card", "check", str(card), "--root", wrong]) == DataError.exit_code
        server.shutdown()
    refused = capsys.readouterr().err
    assert refused.count("status 401") == 2
    assert not any(word in printed + refused for word in ("w%40rd", "w@rd", "w0rd", "sig="))


def test_the_check_says_of_an_address_what_it_says_of_a_folder(
    data: Path, web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, said = shutil.copy(data.parent / "eyes.yaml", tmp_path), []
    for root in (str(data), web):
        assert cli.main(["card", "check", str(card), "--root", root]) == 0
        said.append(capsys.readouterr().out.replace(root, "ROOT"))
    assert said[0] == said[1]


def test_addresses_that_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "own.yaml"
    card.write_text(CARD)
    for which, root, said in (
        (["--dataset", "embed"], "s3://bucket/embed", "archives are read from a file system"),
        (["--card", str(card)], "ftp://host/x", "unknown kind of address ftp://"),
        (["--card", str(card)], "https:///x", "an address without a host"),
        (["--card", str(card)], "https://host:secret/x", "an address without a host"),
    ):
        assert cli.main(["convert", *which, "--root", root, "--out", str(tmp_path / "out")]) == DataError.exit_code
        error = capsys.readouterr().err
        assert said in error
        assert "secret" not in error
        assert error.count("\n") == 1
