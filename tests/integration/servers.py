"""Real servers on loopback: nginx, an S3-protocol server, and a proxy that spoils what passes through it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from m4oe_ds.coordinates import free_port

NGINX = shutil.which("nginx") or next((path for path in ("/usr/sbin/nginx",) if os.path.exists(path)), None)
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")

_CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port};
    location /plain/ {{ alias {root}/; }}
    location /norange/ {{ alias {root}/; max_ranges 0; }}
    location /slow/ {{ alias {root}/; limit_rate 200k; }}
    location /broken/ {{ return 503; }}
    location /forbidden/ {{ return 403; }}
  }}
}}
"""


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 900.0) -> None:
    """Returns when something accepts connections on the port."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended at once"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


@contextlib.contextmanager
def nginx(root: Path, folder: Path) -> Iterator[str]:
    """nginx serving ``root`` under several locations; yields its address."""
    assert NGINX is not None
    folder.mkdir()
    folder.chmod(0o755)
    port = free_port()
    config = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""  # the shards lie where only this user may read
    config.write_text(user + _CONFIG.format(folder=folder, root=root, port=port))
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(900)


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """A server of the S3 protocol; yields its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(900)


@contextlib.contextmanager
def bucket(folder: Path, name: str) -> Iterator[str]:
    """A bucket with the files of a folder on such a server, reached by the variables of AWS; yields its address."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    with s3() as address, pytest.MonkeyPatch.context() as patch:
        for variable, value in (
            ("AWS_ENDPOINT_URL_S3", address),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(variable, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), name, f"set/{path.relative_to(folder)}")
        yield f"s3://{name}/set"


class SpoilingProxy:
    """Passes connections on to a server and spoils the first ``times`` answers.

    Args:
        target: port of the server.
        fault: ``reset`` (connection reset in the middle of the body), ``cut`` (orderly end in the middle), ``flip``
            (one bit of the body changed), ``busy`` (503 instead of the answer).
        times: answers to spoil.
        method: only those to requests of this method; empty spoils all.
    """

    def __init__(self, target: int, fault: str, times: int, method: str = "") -> None:
        self.target, self.fault, self.left, self.method = target, fault, times, method.encode()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            request = b""
            while b"\r\n\r\n" not in request:
                part = client.recv(65536)
                if not part:
                    return
                request += part
            # one request per connection, so that every request meets the fault or not by itself
            request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                server.sendall(request)
                answer = b""
                while part := server.recv(65536):
                    answer += part
            client.sendall(self._spoil(answer, client) if request.startswith(self.method) else answer)

    def _spoil(self, answer: bytes, client: socket.socket) -> bytes:
        if self.left <= 0:
            return answer
        self.left -= 1
        body = answer.index(b"\r\n\r\n") + 4
        middle = body + (len(answer) - body) // 2
        if self.fault == "busy":
            return b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if self.fault == "flip":
            return answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :]
        if self.fault == "reset":
            client.sendall(answer[:middle])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        return answer[:middle]
