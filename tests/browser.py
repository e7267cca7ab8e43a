"""Drives a headless Chromium over the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

WAIT_S = 60.0


class Page:
    """A tab of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []
        """Errors and warnings of pages, once `Runtime.enable` and `Log.enable` are sent."""

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol; of the events, complaints are kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            if (complaint := _complaint(message)) is not None:
                self.complaints.append(complaint)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, its result."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + WAIT_S
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition} stayed false"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Load a page; its address has a scheme."""
        self.send("Page.navigate", url=url)
        scheme = url.partition(":")[0]
        self.wait_for(f"document.readyState === 'complete' && location.protocol === '{scheme}:'")

    def type(self, text: str) -> None:
        """Type into the element with the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key; the modifier 2 is Ctrl."""
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" and not modifiers else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **shared, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def resize(self, width: int, height: int = 900) -> None:
        """Show the page in a window of this size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


def _complaint(event: dict[str, Any]) -> str | None:
    """What an event of the protocol complains about."""
    params = event.get("params", {})
    match event.get("method"):
        case "Runtime.exceptionThrown":
            return json.dumps(params["exceptionDetails"])
        case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
            return json.dumps(params["args"])
        case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
            return str(params["entry"]["text"])
    return None


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A tab in a browser of its own, with its files in `profile`. Skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-gpu"]
    options += ["--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # Chromium has none for root
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    # A folder of its own for what it leaves behind; the profile's path may be too long for its socket.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            [program, *options, "about:blank"],
            env=environment | {"HOME": str(profile), "TMPDIR": scratch},
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _debugging_port(profile / "DevToolsActivePort", process)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_S) as response:
                [target] = [target for target in json.load(response) if target["type"] == "page"]
            with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _debugging_port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + WAIT_S
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.05)
    return int(file.read_text().split()[0])


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours rgb(r, g, b), from 1 to 21."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    values = [int(value) / 255 for value in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
