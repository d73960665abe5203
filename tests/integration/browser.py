"""A headless browser for tests, over a pipe in the Chrome DevTools protocol; no driver, no port, no network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The protocol is spoken on descriptors 3 and 4: puts the two given ones there, then becomes the browser.
_ON_3_AND_4 = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for fd, place in zip(high, (3, 4)):
    os.dup2(fd, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
    """The browser's program, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Page:
    """One page.

    Attributes:
        requests: addresses requested, ``data:`` ones left out.
        problems: console errors and warnings, exceptions, violations.
    """

    _to: int
    _from: int
    _session: str = ""
    _rest: bytes = b""
    _number: int = 0
    _events: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def call(self, method: str, timeout: float = 900.0, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that arrive meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def wait(self, event: str, timeout: float = 900.0) -> None:
        """Until an event of this name has arrived."""
        deadline = time.monotonic() + timeout
        while not any(found["method"] == event for found in self._events):
            self._read(deadline)
        self._events = [found for found in self._events if found["method"] != event]

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, path: Path, width: int, height: int, *, phone: bool = False) -> None:
        """Loads a file in a window of this size (CSS pixels); what was recorded before is forgotten."""
        self.requests.clear()
        self.problems.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def screenshot(self, path: Path) -> None:
        """PNG of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            answers = left > 0 and select.select([self._from], [], [], left)[0]
            assert answers, "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        name, found = message["method"], message["params"]
        self._events.append(message)
        if name == "Network.requestWillBeSent" and not found["request"]["url"].startswith("data:"):
            self.requests.append(found["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.problems.append(str(found["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.problems.append(str(found["args"]))
        elif name == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.problems.append(found["entry"]["text"])


@contextlib.contextmanager
def page(program: str, folder: Path) -> Iterator[Page]:
    """A fresh page; ``folder`` takes the browser's profile."""
    to_browser, from_browser = os.pipe(), os.pipe()
    command = [
        sys.executable,
        "-c",
        _ON_3_AND_4,
        str(to_browser[0]),
        str(from_browser[1]),
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={folder}",
        "--remote-debugging-pipe",
        "about:blank",
    ]
    with subprocess.Popen(
        command, pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(to_browser[0])
        os.close(from_browser[1])
        found = Page(to_browser[1], from_browser[0])
        try:
            target = found.call("Target.createTarget", url="about:blank")["targetId"]
            session = found.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            found._session = session
            for domain in ("Page", "Network", "Runtime", "Log"):
                found.call(f"{domain}.enable")
            yield found
            found._session = ""
            found.call("Browser.close")
        finally:
            os.close(to_browser[1])
            os.close(from_browser[0])
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
