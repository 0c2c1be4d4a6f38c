"""Chromium without a window, driven over a pipe by the DevTools protocol, to look at pages as people will.

with Browser(folder) as browser:
    page = browser.open(Path("report.html"), width=390)
    page.problems, page.requests, page.value("document.title")
"""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One Chromium with its profile in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Browser":
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def as_3_and_4() -> None:  # where Chromium expects the pipes; first out of the way of each other
            ends = [os.dup(os.dup(os.dup(end))) for end in (to_browser, from_browser)]
            for place, end in enumerate(ends, start=3):
                os.dup2(end, place)

        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                     f"--user-data-dir={self.folder}", "--no-first-run", "--disable-background-networking"]  # fmt: skip
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(
            [CHROMIUM, *arguments], pass_fds=(3, 4), preexec_fn=as_3_and_4,
            env={**os.environ, "HOME": str(self.folder)}, **quiet,
        )  # fmt: skip
        os.close(to_browser), os.close(from_browser)
        self._number, self._rest, self.events = 0, b"", []
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out), os.close(self._in)  # which ends it
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        """The result of a method of the protocol; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def wait(self, method: str, session: str) -> None:
        """Until an event has come."""
        while not any(event["method"] == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 16)
            assert part, "Chromium ended"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
        """A file in a new tab, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        return Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"], path,
                    width, height, dark)  # fmt: skip


class Page:
    """An open page: `seconds` from navigation to its load event and the frame after it."""

    def __init__(self, browser: Browser, session: str, path: Path, width: int, height: int, dark: bool) -> None:
        self._browser, self._session, self.url = browser, session, path.resolve().as_uri()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.events.clear()
        start = time.perf_counter()
        self.call("Page.navigate", url=self.url)
        browser.wait("Page.loadEventFired", session)
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        self.seconds = time.perf_counter() - start

    def call(self, method: str, **parameters: object) -> dict:
        return self._browser.call(method, self._session, **parameters)

    def value(self, script: str) -> object:
        """What an expression of JavaScript gives, awaited."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def _events(self, method: str) -> list[dict]:
        return [event["params"] for event in self._browser.events
                if event["method"] == method and event.get("sessionId") == self._session]  # fmt: skip

    @property
    def problems(self) -> list[dict]:
        """Everything that the console shows, and exceptions."""
        return [*self._events("Log.entryAdded"), *self._events("Runtime.consoleAPICalled"),
                *self._events("Runtime.exceptionThrown")]  # fmt: skip

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for, other than the page's own and those that hold their content."""
        urls = [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in urls if url != self.url and not url.startswith("data:")]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as a PNG, down to its end if `whole`."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"]))
