"""A headless Chromium that opens a page and tells what happened: over its own protocol, with nothing else installed.

Imported by tests. Where there is no Chromium (Debian's package `chromium`), they skip.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

# axe-core as npm has installed it, globally or for this repository.
_AXE = "axe-core/axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_NOT = "no Chromium: apt-get install chromium"

_START_S = 60
_ANSWER_S = 60


@dataclass
class Page:
    """A tab. complaints: errors and warnings of scripts and of the page's policy. requests: what it asked for."""

    connection: ClientConnection
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    loaded: bool = False
    _sent: int = 0

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers."""
        self._sent += 1
        number = self._sent
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(timeout=_ANSWER_S))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        method, heard = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(heard["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(heard["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(heard["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(heard["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(heard["message"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, file: Path) -> None:
        """Load a file, and wait until it stands."""
        self.complaints.clear(), self.requests.clear(), self.dialogs.clear()
        self.loaded = False
        self.send("Page.navigate", url=file.absolute().as_uri())
        deadline = time.monotonic() + _ANSWER_S
        while not self.loaded:
            assert time.monotonic() < deadline, f"{file} did not load"
            self.send("Runtime.evaluate", expression="1")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{box}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({box}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key of the keyboard, such as Tab or Enter."""
        codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Be so many CSS pixels wide, and have a colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """A screenshot, of what is on the screen or of the whole page."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


def axe_core() -> Path | None:
    """The script of the accessibility checker; None where npm has not installed it."""
    folders = [Path(__file__).resolve().parents[1] / "node_modules"]
    if npm := shutil.which("npm"):
        done = subprocess.run([npm, "root", "--global"], capture_output=True, text=True, check=False)
        folders.append(Path(done.stdout.strip()))
    return next((folder / _AXE for folder in folders if (folder / _AXE).is_file()), None)


@contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """folder: for the browser's own files."""
    assert CHROMIUM is not None
    profile = folder / "chromium"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        with connect(_tab(browser, profile, folder), max_size=None, open_timeout=_START_S) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{domain}.enable")
            yield page
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def _tab(browser: subprocess.Popen[bytes], profile: Path, folder: Path) -> str:
    """The address of the one tab, once the browser has started."""
    import httpx

    port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + _START_S
    while not port_file.exists() or not port_file.read_text().strip():
        log = (folder / "chromium.log").read_text(errors="replace")
        starts = browser.poll() is None and time.monotonic() < deadline
        assert starts, f"Chromium does not start: {log[-2000:]}"
        time.sleep(0.05)
    port = port_file.read_text().split()[0]
    tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False, timeout=_START_S).json()
    return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
