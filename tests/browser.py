"""A browser without a window, driven over a pipe: keys, sizes, colour schemes, what it logs and what it fetches."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
_MOST_SECONDS = 60  # that an answer takes
_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32, "Tab": 9, "Enter": 13}


class Page:
    """One page of the browser.

    Attributes:
        problems: what the page logged as an error or a warning, and exceptions.
        fetched: addresses that the page asked for, but its own.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._number, self._received = commands, answers, 0, b""
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.fetched: list[str] = []
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._answers], [], [], _MOST_SECONDS)[0], "the browser does not answer"
            part = os.read(self._answers, 1 << 16)
            assert part, "the browser has gone"
            self._received += part
        raw, _, self._received = self._received.partition(b"\0")
        message = json.loads(raw)
        name, values = message.get("method"), message.get("params")
        if name == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"]))
        elif name == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.problems.append(str(values["args"]))
        elif name == "Network.requestWillBeSent" and values["type"] != "Document":
            address = values["request"]["url"]
            self.fetched += [] if address.startswith("data:") else [address]
        if name:
            self._events.append(message)
        return message

    def open(self, file: Path) -> None:
        """Go to a file, and wait until it is loaded."""
        self.problems.clear()
        self.fetched.clear()
        self._events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()

    def look(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Set the size of the window, in CSS pixels, and the colour scheme."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page, as JSON has it; a promise is waited for."""
        asked = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in asked, asked
        return asked["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, where the focus is."""
        values = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r" if key == "Enter" else key} if key in (" ", "Enter") else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **values, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def click(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def photograph(self, file: Path, whole: bool = True) -> None:
        """Write a PNG of the page, or of what the window shows of it."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A page of a browser whose profile lies in a folder."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    script = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
    command = [
        "bash",
        "-c",
        script,
        str(BROWSER),
        *_OPTIONS[:-1],
        f"--user-data-dir={folder / 'profile'}",
        _OPTIONS[-1],
    ]
    process = subprocess.Popen(
        command, pass_fds=(from_us, to_us), env=os.environ | {"HOME": str(folder)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    try:
        yield Page(to_browser, from_browser)
        os.write(to_browser, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        process.wait(timeout=20)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        if process.poll() is None:
            process.kill()
            process.wait()
