"""Service on a loopback socket, with a classifier that names the grey value of a picture."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import io
import json
import re
import threading
import time

import numpy as np
from PIL import Image

from util.images import decode
from util.infer.serve.service import Service, Settings
from util.infer.serve.sockets import open_socket
from util.infer.serve.uploads import Refused

K = 256


class Greys:
    """Classifier: the class is the grey value of the first pixel, with 0.75; the next two share the rest."""

    names = [f"grey <{number}>" for number in range(K)]
    info = {"model": {"name": "greys"}}

    def __init__(self):
        self.batches, self.opened, self.entered = [], threading.Event(), threading.Event()
        self.opened.set()

    def prepare(self, picture):
        return np.asarray(decode.from_pil(picture, in_chans=1), "float32")[None, :1, :1]

    def probabilities(self, images):
        self.batches.append(len(images))
        self.entered.set()
        assert self.opened.wait(10)
        found = np.zeros([len(images), K])
        for row, value in zip(found, images[:, 0, 0, 0].astype(int)):
            row[value], row[(value + 1) % K], row[(value + 2) % K] = 0.75, 0.125, 0.125
        return found

    @contextlib.contextmanager
    def busy(self, running):
        """Context in which one request is computed and does not end."""
        self.opened.clear()
        self.entered.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            try:
                first = pool.submit(running.post, "/predict", picture(1))
                assert self.entered.wait(5)
                yield first
            finally:
                self.opened.set()


class Panels:
    """Figure whose heading holds the arguments that it was asked for."""

    def prepare(self, picture):
        return np.asarray(decode.from_pil(picture, in_chans=1), "float32")[None] / 255

    def rows(self, image, **asked):
        if asked.get("mask_ratio") == 0.99:
            raise Refused(400, "?mask_ratio=0.99: too much")
        if asked.get("mask_ratio") == 0.2:
            time.sleep(0.5)
        return [(f"<b>{sorted(asked.items())}</b>", [("masked", "75% hidden", image), ("", "", 1 - image)])]


class Running:
    """Service on a port of its own, in a thread; `settings` as for util.infer.serve.service.Settings."""

    def __init__(self, classifier=None, *, grace=5.0, about=None, figures=None, absent=None, **settings):
        self.classifier, self.lines, self.grace = classifier or Greys(), [], grace
        self.service = Service(
            self.classifier,
            Settings(**{"batch_wait": 0.0, **settings}),
            about=about,
            figures=figures,
            absent=absent,
            log=self.lines.append,
        )
        self.listening = open_socket("127.0.0.1", 0)
        self.port = self.listening.getsockname()[1]

    def __enter__(self):
        ready = threading.Event()

        async def serve():
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
            await self.service.run(self.listening, self.stop, ready=ready.set, grace=self.grace)

        self.thread = threading.Thread(target=asyncio.run, args=[serve()])
        self.thread.start()
        assert ready.wait(10)
        self.classifier.batches.clear()  # of the warm-up
        return self

    def __exit__(self, *error):
        self.end()
        self.thread.join(15)
        self.listening.close()
        assert not self.thread.is_alive()

    def end(self):
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self.stop.set)

    def ask(self, method, path, body=None, headers=None):
        """Return (status, headers, bytes)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def post(self, path, body, kind="image/png", **headers):
        """Return (status, JSON)."""
        status, _, content = self.ask("POST", path, body, {"Content-Type": kind, **headers})
        return status, json.loads(content)

    def files(self, path, *files):
        return self.post(path, *multipart(*files))

    def metric(self, name):
        """Return {labels as text: number} of /metrics."""
        text = self.ask("GET", "/metrics")[2].decode()
        found = re.findall(rf"^{name}(?:{{(.*?)}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def wait_for(self, condition):
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


def picture(value, size=(8, 8), form="PNG"):
    file = io.BytesIO()
    Image.new("L", size, value).save(file, format=form)
    return file.getvalue()


def multipart(*files, boundary="next"):
    """Return (body, Content-Type) of (file name, bytes), ..."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="x"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
