"""Pages in headless Chromium for tests: screenshots, texts, values of JavaScript expressions.

    with browser.page(tmp_path / "report.html", width=390, height=800, dark=True) as page:
        page.wait_for("document.images.length > 2")
        page.screenshot(tmp_path / "report.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

Tests that need it: `pytestmark = pytest.mark.skipif(not browser.available(), reason="no Chromium")`.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--mute-audio",
    "--lang=en",
)


def executable():
    return next(filter(None, map(shutil.which, NAMES)), None)


def available():
    return executable() is not None


class Page:
    """An open page of exactly the requested width, although a window of Chromium has at least 500 pixels.

    `requests` are the addresses that it has asked for, its own first; `complaints` the errors in its scripts.
    """

    def __init__(self, send, receive, width, timeout):
        self._to, self._from = send, receive
        self.width = width
        self._deadline = time.monotonic() + timeout
        self._number, self._buffer, self._session = 0, b"", None
        self._events, self.requests, self.complaints = [], [], []

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited if it is a promise; ValueError if it throws."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise ValueError(
                f"{expression}: {details.get('exception', {}).get('description', details['text'])}"
            )
        return answer["result"].get("value")

    def wait_for(self, expression):
        """Return once a JavaScript expression is true; TimeoutError with the page's text if it never is."""
        try:
            while not self.evaluate(expression):
                self._check_time(expression)
                time.sleep(0.1)
        except TimeoutError as error:
            self._deadline = time.monotonic() + 5
            raise TimeoutError(
                f"{expression} has not become true; the page says {self.text()[:1000]!r}"
            ) from error

    def text(self):
        """Text of the page."""
        return self.evaluate("document.body.innerText")

    def html(self):
        """The page as its scripts have made it."""
        return self.evaluate("document.documentElement.outerHTML")

    def choose_file(self, selector, path):
        """Choose a file as its reader would in the <input type="file"> that a CSS selector finds."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(Path(path).resolve())])

    def overflows(self):
        """Tell if the page is wider than the screen; a phone would shrink its letters."""
        return self.evaluate("Math.max(document.documentElement.scrollWidth, window.innerWidth)") > self.width

    def screenshot(self, path, *, whole=False):
        """Write what can be seen, or the whole page, as a PNG."""
        more = {}
        if whole:
            box = self._call("Page.getLayoutMetrics")["cssContentSize"]
            more = {"captureBeyondViewport": True, "clip": {**box, "scale": 1}}
        Path(path).write_bytes(
            base64.b64decode(self._call("Page.captureScreenshot", format="png", **more)["data"])
        )

    # ---- the DevTools protocol: JSON, each message ended by a zero byte

    def _open(self, url, height, dark):
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=self.width,
            height=height,
            deviceScaleFactor=1,
            mobile=self.width < 500,
        )  # mobile: the page's <meta name="viewport"> counts, as on a phone
        self._call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        failed = self._call("Page.navigate", url=url).get("errorText")
        if failed:
            raise ValueError(f"{url}: {failed}")
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ValueError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            self._check_time("an answer of Chromium")
            if select.select([self._from], [], [], 0.5)[0]:
                part = os.read(self._from, 2**20)
                if not part:
                    raise ConnectionError("Chromium has ended")
                self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        method, parameters = message.get("method"), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        return message

    def _check_time(self, awaited):
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"waited in vain for {awaited}")


@contextlib.contextmanager
def page(address, *, width=1280, height=800, dark=False, timeout=30):
    """Open a file or URL in a Chromium of its own, which ends with the context.

    Args:
        dark: what the page is told that its reader prefers.
        timeout: seconds for all that is done with the page.
    """
    url = str(address) if "://" in str(address) else Path(address).resolve().as_uri()
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True)
        )
        to_browser, send = _pipe(stack)
        receive, from_browser = _pipe(stack)
        # It listens on descriptor 3 and answers on 4.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                "bash",
                executable(),
                *FLAGS,
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_end, process)
        opened = Page(send, receive, width, timeout)
        opened._open(url, height, dark)
        yield opened


def screenshot(address, path, *, width=1280, height=800, dark=False, whole=False):
    """A PNG of a file or URL."""
    with page(address, width=width, height=height, dark=dark) as opened:
        opened.screenshot(path, whole=whole)


def dom(address, *, width=1280, height=800, dark=False):
    """The HTML of a file or URL, as its scripts have made it."""
    with page(address, width=width, height=height, dark=dark) as opened:
        return opened.html()


def _pipe(stack):
    """Two ends, with numbers of two digits: redirecting the one to 3 must not close the other."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
        stack.callback(os.close, ends[-1])
    return ends


def _end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
