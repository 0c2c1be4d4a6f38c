"""Headless Chromium, controlled over a pipe by the DevTools protocol, to test pages as readers see them.

with Browser(profile) as browser:
    page = browser.open(Path("report.html"), width=390)
    page.problems, page.requests, page.value("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from requirements import require

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Scripts: the texts of verdicts that leave the window, and short words of names that are broken.
CUT_OFF = """[...document.querySelectorAll('.verdict')].filter(cell => cell.getBoundingClientRect().right > innerWidth)
    .map(cell => cell.textContent)"""
BROKEN_NAMES = """[...document.querySelectorAll('bdi')].filter(name => name.checkVisibility())
    .flatMap(name => [...name.childNodes]).filter(part => /^\\S{1,12}$/.test(part.data)).filter(part => {
        const range = document.createRange();
        range.selectNodeContents(part);
        return new Set([...range.getClientRects()].map(box => box.top)).size > 1;
    }).map(part => part.data)"""


class Browser:
    """A Chromium process with its profile in a directory; a test that enters it without Chromium is skipped."""

    def __init__(self, profile: Path) -> None:
        self.profile = profile
        self.events: list[dict[str, Any]] = []
        self._last_id, self._unread = 0, b""

    def __enter__(self) -> Browser:
        require(CHROMIUM is not None, "Chromium: apt install chromium")
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def move_pipes() -> None:
            """Chromium reads descriptor 3 and writes to 4. Duplicate first, since either may be 3 or 4 already."""
            ends = [os.dup(os.dup(os.dup(end))) for end in (to_browser, from_browser)]
            for descriptor, end in enumerate(ends, start=3):
                os.dup2(end, descriptor)

        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
                f"--user-data-dir={self.profile}",
                "--no-first-run",
                "--disable-background-networking",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=move_pipes,
            env={**os.environ, "HOME": str(self.profile)},
        )
        os.close(to_browser)
        os.close(from_browser)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # Chromium exits when its pipe closes
        os.close(self._in)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events that arrive meanwhile are kept."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._read()).get("id") != self._last_id:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def wait(self, method: str, session: str) -> None:
        """Wait until an event has arrived."""
        while not any(event["method"] == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._in, 1 << 16)
            assert part, "Chromium ended"
            self._unread += part
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open a file or an address in a new tab and wait until it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, path, width, height, dark)


class Page:
    """An open page; `seconds` is the time from navigation to the frame after its load event."""

    def __init__(self, browser: Browser, session: str, path: Path | str, width: int, height: int, dark: bool) -> None:
        self._browser, self._session = browser, session
        self.url = path if isinstance(path, str) else path.resolve().as_uri()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.events.clear()
        start = time.perf_counter()
        self.call("Page.navigate", url=self.url)
        browser.wait("Page.loadEventFired", session)
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        self.seconds = time.perf_counter() - start

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol for this page and return its result."""
        return self._browser.call(method, self._session, **parameters)

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _events(self, method: str) -> list[dict[str, Any]]:
        events = self._browser.events
        return [e["params"] for e in events if e["method"] == method and e.get("sessionId") == self._session]

    @property
    def problems(self) -> list[dict[str, Any]]:
        """All console messages and exceptions."""
        return [
            *self._events("Log.entryAdded"),
            *self._events("Runtime.consoleAPICalled"),
            *self._events("Runtime.exceptionThrown"),
        ]

    @property
    def requests(self) -> list[str]:
        """The requested URLs, other than the page's own and `data:` URLs."""
        urls = [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in urls if url != self.url and not url.startswith("data:")]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save the page as a PNG; the whole page, or only its visible part."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Print the page to a PDF."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"]))
