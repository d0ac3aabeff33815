"""An HTTP service around a classifier: routes, limits and answers.

    GET  /              a page for people
    POST /predict       pictures -> classes, JSON
    POST /attention     a picture -> where the model looks, PNG or JSON
    POST /reconstruct   a picture -> what an autoencoder makes of the part that it sees, PNG or JSON
    GET  /health        JSON
    GET  /metrics       Prometheus's text form

Pictures come as multipart/form-data, or one as the body itself. Every error is JSON, {"error": sentence}. What it may
take of memory and time is bounded, whatever clients do: see Limits.
"""
import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import ipaddress
import logging
import math
import platform
import re
import socket
import time
import traceback
from pathlib import Path

import numpy as np
import prometheus_client
from aiohttp import http_exceptions, web
from PIL import Image

from util.images import decode
from util.infer.micro_batches import MicroBatches
from util.look.figures import sheet, to_image

# What may be sent. Pillow reads more: some of it by other programs, some of it (TIFF) in tiles that may be much larger
# than the picture.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
SCANS = 20              # of a progressive JPEG of Limits.pixels: each costs time, and a few bytes; encoders make ten
DECODERS = 2            # threads
LONGEST = 100           # times the short side of a picture
UPLOADS = 8             # times Limits.body bytes: what all requests' bodies may take of memory together
CHUNK = 2 ** 16         # bytes that are read at once
RETRY_AFTER = 1         # seconds
GONE = 499              # nginx's number for a client that did not wait for its answer
CLOSING = 1.0           # seconds for answers to be written once the work is done
OTHER = "other"         # route of a request in the metrics for which there is none

# What aiohttp raises for a body that is not what it says it is.
MALFORMED = (ValueError, http_exceptions.HttpProcessingError, web.RequestPayloadError)


class Refused(Exception):
    """What a client has asked for cannot be done: an HTTP status, and why, in a sentence."""

    def __init__(self, status, sentence, **more):
        self.status, self.sentence, self.more = status, sentence, more
        super().__init__(status, sentence)


@dataclasses.dataclass(frozen=True)
class Limits:
    """
    body: bytes of a request's body; images: of a request; pixels: of a picture; queue: images of all requests that
    are read, wait or are computed; timeout: seconds for a request's body to arrive, and as many for its answer.
    """
    body: int = 32 * 2 ** 20
    images: int = 32
    pixels: int = 50_000_000
    queue: int = 128
    timeout: float = 30.0


class Service:
    """What answers requests; `run` puts it on a port.

    Args:
        classifier: a util.infer.classifier.Classifier, or what has its `prepare`, `probabilities`, `names` and `info`.
        about: {key: value} that /health tells besides.
        topk: classes of an answer, where the request does not say.
        batch_size, batch_wait: images that are computed together, and the seconds an image waits for others.
        attention, reconstruct: None, or what has `prepare`, like that of the classifier, and `rows`, from what that
            gives to the rows of a util.look.figures.sheet. reconstruct.rows takes name (of the file), mask_ratio and seed
            besides, and may raise Refused.
        absent: {"attention" or "reconstruct": why it is None, in a sentence}.
        names: by which its host is known, besides localhost and IP addresses.
        log: called with a line for each request.
    """

    def __init__(self, classifier, *, about=None, topk=5, batch_size=8, batch_wait=0.005, limits=Limits(),
                 attention=None, reconstruct=None, absent=None, names=(), log=lambda line: None):
        self.classifier, self.about, self.topk, self.limits = classifier, about or {}, topk, limits
        self.figures = {"attention": attention, "reconstruct": reconstruct}
        self.absent, self.log = absent or {}, log
        self.names = {"localhost", *(name.lower() for name in names)}
        self.started, self.stopping = time.monotonic(), False
        self.images, self.bytes = Budget(limits.queue), Budget(UPLOADS * limits.body)
        self.batch_size, self.batch_wait = batch_size, batch_wait
        self.metrics = Metrics(batch_size, lambda: self.images.taken)
        self.page, self.page_policy = _page()

    async def run(self, listening, stop, *, ready=lambda: None, grace=10.0):
        """Answer requests on the socket `listening` until the asyncio.Event `stop` is set.

        Then new work is refused, and /health says 503; what is in work has `grace` seconds to end.
        """
        self.batches = MicroBatches(self._classify, batch_size=self.batch_size, wait=self.batch_wait,
                                    observe=self.metrics.batches.observe)
        self.decoders = concurrent.futures.ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        # Its connections close if no whole request has come in this time. Compressed bodies are refused, not unpacked.
        runner = web.AppRunner(self._application(), handler_cancellation=True, auto_decompress=False, access_log=None,
                               logger=_logger(), keepalive_timeout=self.limits.timeout, shutdown_timeout=CLOSING)
        await runner.setup()
        try:
            # The first answer is slow, and tells whether there will be any.
            image = await self._in_decoder(self.classifier.prepare, Image.new("RGB", (64, 64)))
            await self.batches.alone(self._classify, [image])
            await web.SockSite(runner, listening).start()
            ready()
            await stop.wait()
            self.stopping = True
            end = time.monotonic() + grace
            while self.images.taken and time.monotonic() < end:
                await asyncio.sleep(0.02)
        finally:
            await runner.cleanup()
            self.batches.close()
            self.decoders.shutdown(wait=False, cancel_futures=True)

    def _application(self):
        application = web.Application(middlewares=[self._answered], client_max_size=self.limits.body)
        application.add_routes([
            web.get("/", self._front), web.post("/predict", self._predict), web.post("/attention", self._attention),
            web.post("/reconstruct", self._reconstruct), web.get("/health", self._health),
            web.get("/metrics", self._exposition)])
        return application

    @web.middleware
    async def _answered(self, request, handler):
        """Around every request: every error as JSON, counted, timed, logged."""
        started, status = time.monotonic(), GONE
        route = request.match_info.route.resource
        route = OTHER if route is None else route.canonical
        try:
            try:
                self._check_origin(request)
                response = await handler(request)
            except Refused as refused:
                headers = {"Retry-After": str(RETRY_AFTER)} if refused.status == 503 else None
                response = web.json_response({"error": refused.sentence, **refused.more}, status=refused.status,
                                             headers=headers)
            except web.HTTPException as error:
                sentences = {404: f"there is nothing at {request.path}",
                             405: f"{request.path} does not take {request.method}"}
                headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
                response = web.json_response({"error": sentences.get(error.status, error.reason)}, status=error.status,
                                             headers=headers)
            except Exception:  # a bug, whatever it is: the client gets no traceback, and the service goes on
                traceback.print_exc()
                sentence = "the service has failed at this; its log says where"
                response = web.json_response({"error": sentence}, status=500)
            status = response.status
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Cache-Control"] = "no-store"
            return response
        finally:
            seconds = time.monotonic() - started
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            self.log(f"{request.remote} {request.method} {request.rel_url!s} {status} {1e3 * seconds:.0f} ms")

    def _check_origin(self, request):
        """Refused for what a web page elsewhere has made its reader's browser send here."""
        host = request.headers.get("Host")
        if host is not None:  # a browser always tells it
            name = re.sub(r":\d+$", "", host).strip("[]").lower().rstrip(".")
            if name not in self.names and not _is_address(name):
                raise Refused(421, f"this service is not called {name!r}; ask for it by its address, or put that into "
                                   "the Host header")
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise Refused(403, "a page of another site may not ask for this")

    # ---- the routes

    async def _front(self, request):
        return web.Response(text=self.page, content_type="text/html",
                            headers={"Content-Security-Policy": self.page_policy,
                                                                               "Referrer-Policy": "no-referrer"})

    async def _health(self, request):
        info = self.classifier.info
        return web.json_response(
            {"status": "stopping" if self.stopping else "ok", "model": info["model"]["name"],
             "classes": len(self.classifier.names), **self.about, "queue": self.images.taken,
             "uptime_s": round(time.monotonic() - self.started, 1),
             **{what: function is not None for what, function in self.figures.items()}},
            status=503 if self.stopping else 200)

    async def _exposition(self, request):
        return web.Response(body=prometheus_client.generate_latest(self.metrics.registry),
                            headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def _predict(self, request):
        topk = _parameters(request, topk=(self.topk, _whole_number(1)))["topk"]
        topk = min(topk, len(self.classifier.names))
        with self.images.part() as places, self.bytes.part() as held:
            pictures = await self._pictures(request, held, places, self.limits.images)
            answers = await self._in_time(self._answers(pictures))
        results, problems = [], []
        for (name, _), answer in zip(pictures, answers, strict=True):
            if isinstance(answer, Refused):
                problems.append(answer)
                results.append({"name": name, "error": answer.sentence})
            else:
                results.append({"name": name, "classes": self._best(answer, topk)})
        self.metrics.images.inc(len(results))
        self.metrics.unreadable.inc(len(problems))
        if len(problems) == len(results):
            statuses = {problem.status for problem in problems}
            first = f"{results[0]['name']}: {problems[0].sentence}"
            raise Refused(statuses.pop() if len(statuses) == 1 else 422,
                          first if len(results) == 1 else f"none of the {len(results)} pictures can be read; {first}",
                          results=results)
        return web.json_response({"results": results, "model": self.classifier.info["model"]["name"]})

    async def _attention(self, request):
        self._check_offered("attention")
        _parameters(request)
        return await self._figure(request, "attention")

    async def _reconstruct(self, request):
        self._check_offered("reconstruct")
        asked = _parameters(request, mask_ratio=(0.75, _share), seed=(0, _whole_number(0)))
        return await self._figure(request, "reconstruct", **asked)

    def _check_offered(self, what):
        if self.figures[what] is None:
            raise Refused(404, self.absent.get(what, f"this service has no /{what}"))

    async def _figure(self, request, what, **asked):
        """PNG of a figure of the request's one picture; JSON with each cell on its own, if that is asked for."""
        figure = self.figures[what]

        async def drawn(name, data):
            image = await self._in_decoder(self._prepared, data, figure.prepare)
            if isinstance(image, Refused):
                self.metrics.unreadable.inc()
                raise Refused(image.status, f"{name}: {image.sentence}")
            rows = await self.batches.alone(lambda: figure.rows(image, **asked, **({"name": name} if asked else {})))
            return await self._in_decoder(_as_json if as_json else lambda rows: _png(sheet(rows)), rows)

        as_json = "application/json" in request.headers.get("Accept", "")
        with self.images.part() as places, self.bytes.part() as held:
            picture, = await self._pictures(request, held, places, 1)
            self.metrics.images.inc()
            answer = await self._in_time(drawn(*picture))
        return web.json_response(answer) if as_json else web.Response(body=answer, content_type="image/png")

    # ---- what they are made of

    async def _pictures(self, request, held, places, most):
        """[(name, bytes), ...] of a request, once all is there; Refused if there is no room or something is wrong."""
        if self.stopping:
            raise Refused(503, "the service is shutting down")
        places.take(1)  # before anything is read: while others wait, an upload is for nothing
        if (request.content_length or 0) > self.limits.body:
            raise self._too_large()
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, f"Content-Encoding {request.headers['Content-Encoding']!r}: send pictures as they are")
        try:
            pictures = await asyncio.wait_for(self._body(request, held, most), self.limits.timeout)
        except asyncio.TimeoutError as error:
            raise Refused(408, f"the body has not arrived within {self.limits.timeout:g} s") from error
        except ConnectionError as error:
            raise Refused(GONE, "the client has gone") from error
        except MALFORMED as error:
            raise Refused(400, "the body is damaged, or is not what its Content-Type says") from error
        if not pictures:
            raise Refused(400, "there is no picture in the request; send multipart/form-data with files, or one as "
                               "the body")
        places.take(len(pictures) - 1)
        return pictures

    async def _body(self, request, held, most):
        kind = request.content_type
        if kind == "application/octet-stream" or kind.startswith("image/"):  # the first also where there is none
            data = await self._read(request.content.read, request, held)
            return [("image", data)] if data else []
        if kind != "multipart/form-data":
            raise Refused(415, f"Content-Type {kind!r}: expected multipart/form-data with files, or image/* or "
                               "application/octet-stream with one picture as the body")
        pictures = []
        async for part in await request.multipart():
            name = getattr(part, "filename", None) or getattr(part, "name", None)
            if not hasattr(part, "read_chunk"):
                raise Refused(400, "there is a multipart body inside of the multipart body; send files")
            if part.filename is None and not part.headers.get("Content-Type", "").startswith("image/"):
                raise Refused(400, f"field {name!r} is not a file; options stand in the address, such as ?topk=3")
            if {"Content-Encoding", "Content-Transfer-Encoding"} & part.headers.keys():
                coding = part.headers.get("Content-Encoding", part.headers.get("Content-Transfer-Encoding"))
                if coding.lower() not in ("identity", "binary", "8bit"):
                    raise Refused(415, f"{name}: encoded as {coding!r}; send pictures as they are")
            if len(pictures) == most:
                raise Refused(413, f"more than {most} {'picture' if most == 1 else 'pictures'} in a request")
            pictures.append((name or "image", await self._read(part.read_chunk, request, held)))
        return pictures

    async def _read(self, read, request, held):
        chunks = []
        while chunk := await read(CHUNK):
            if request.content.total_bytes > self.limits.body:
                raise self._too_large()
            held.take(len(chunk))
            chunks.append(bytes(chunk))
        return b"".join(chunks)

    def _too_large(self):
        return Refused(413, f"the body is larger than {self.limits.body / 2 ** 20:g} MB")

    async def _answers(self, pictures):
        """For each picture its probabilities [K], or Refused."""
        prepare = self.classifier.prepare
        prepared = await asyncio.gather(*(self._in_decoder(self._prepared, data, prepare) for _, data in pictures))
        images = [image for image in prepared if not isinstance(image, Refused)]
        rows = iter(await self.batches(images) if images else [])
        return [image if isinstance(image, Refused) else next(rows) for image in prepared]

    async def _in_time(self, work):
        try:
            return await asyncio.wait_for(work, self.limits.timeout)
        except asyncio.TimeoutError as error:
            raise Refused(504, f"there is no answer within {self.limits.timeout:g} s") from error

    async def _in_decoder(self, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *arguments)

    def _prepared(self, data, prepare):
        """What `prepare` makes of a picture's bytes, or Refused."""
        try:
            with self._opened(data) as image:
                return prepare(image)
        except decode.UnreadableImage as error:
            return Refused(422, f"cannot be read as a picture: {error.reason}")
        except Refused as refused:
            return refused

    def _opened(self, data):
        """The PIL image of a picture's bytes, not decoded; Refused, by its header, if that would take too much.

        It is opened but once: a file may be a small picture to one reader and a large one to another.
        """
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise Refused(413, f"more than {self.limits.pixels:,} pixels") from error
        except decode.DAMAGED as error:
            raise Refused(415, f"not a picture in one of the formats {', '.join(FORMATS)}") from error
        width, height = image.size
        if width * height > self.limits.pixels:
            raise Refused(413, f"{width} x {height}: more than {self.limits.pixels:,} pixels")
        if image.info.get("progressive") and (scans := data.count(b"\xff\xda")) * width * height > (
                SCANS * self.limits.pixels):
            raise Refused(413, f"a progressive JPEG of {width} x {height} pixels and {scans} scans takes too long")
        if max(width, height) > LONGEST * min(width, height):  # it is resized by its short side, which may be a pixel
            raise Refused(413, f"{width} x {height}: one side is more than {LONGEST} times the other")
        return image

    def _classify(self, images):
        return self.classifier.probabilities(np.stack(images))

    def _best(self, probabilities, topk):
        return [{"class": self.classifier.names[label], "label": label, "probability": float(probabilities[label])}
                for label in np.argsort(-probabilities, kind="stable")[:topk].tolist()]  # equal ones in their order


class Budget:
    """So much of something, of which requests take their parts."""

    def __init__(self, whole):
        self.whole, self.taken = whole, 0

    def part(self):
        return _Part(self)


class _Part:
    """What one request has taken; given back at the end of the context."""

    def __init__(self, budget):
        self.budget, self.taken = budget, 0

    def take(self, amount):
        if self.budget.taken + amount > self.budget.whole:
            raise Refused(503, "too much is being worked on; try again later")
        self.budget.taken += amount
        self.taken += amount

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.budget.taken -= self.taken


class Metrics:
    """What /metrics tells, in a registry of its own."""

    def __init__(self, batch_size, queue):
        self.registry = prometheus_client.CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = prometheus_client.Counter("mae_requests", "requests (499: the client went away)",
                                                  ["route", "status"], **own)
        self.seconds = prometheus_client.Histogram(
            "mae_request_seconds", "from a request's head to its answer", ["route"],
            buckets=(.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30), **own)
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < batch_size]
        self.batches = prometheus_client.Histogram("mae_batch_images", "images that were computed together",
                                                   buckets=[*sizes, batch_size], **own)
        self.images = prometheus_client.Counter("mae_images", "pictures that were sent", **own)
        self.unreadable = prometheus_client.Counter("mae_images_unreadable", "those of them that cannot be read", **own)
        prometheus_client.Gauge("mae_queue_images", "pictures that are read, wait or are computed",
                                **own).set_function(queue)
        prometheus_client.ProcessCollector(**own)


def open_socket(host, port):
    """A socket that listens; ValueError if there can be none."""
    if not 0 <= port < 2 ** 16:
        raise ValueError(f"--port {port}: expected 0 to {2 ** 16 - 1}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: cannot be listened at ({error.strerror or error}); name "
                         "another, or end what uses it") from error


def url(listening):
    """Where a browser on this machine finds what listens."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def versions(*packages):
    """{"python": version, package: version, ...} of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _is_address(name):
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _parameters(request, **known):
    """{name: value} of the query; `known` is {name: (default, function from text to value)}."""
    for name in request.query:
        if name not in known:
            usual = " or ".join(f"?{option}=" for option in known) or "nothing behind the ?"
            raise Refused(400, f"?{name}: expected {usual}")
        if len(request.query.getall(name)) > 1:
            raise Refused(400, f"?{name}= stands there more than once")
    values = {}
    for name, (default, read) in known.items():
        try:
            values[name] = read(request.query[name]) if name in request.query else default
        except ValueError as error:
            raise Refused(400, f"?{name}={request.query[name]}: expected {error}") from error
    return values


def _whole_number(least):
    def read(text):
        if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
            raise ValueError(f"a whole number of at least {least}")
        return int(text)
    return read


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError("a number above 0 and below 1")
    return value


def _png(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _as_json(rows):
    """The rows of a util.look.figures.sheet, each picture a PNG in base64."""
    return {"rows": [{"heading": heading, "cells": [
        {"title": title, "note": note, "png": base64.b64encode(_png(to_image(picture))).decode()}
        for title, note, picture in cells]} for heading, cells in rows]}


def _page():
    """The page, and the Content-Security-Policy that lets it do what it does and nothing else."""
    text = Path(__file__).with_name("service_page.html").read_text(encoding="utf-8")
    allowed = {}
    for element in ("script", "style"):
        content, = re.findall(f"<{element}>(.*?)</{element}>", text, flags=re.DOTALL)
        allowed[element] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return text, (f"default-src 'none'; script-src 'sha256-{allowed['script']}'; "
                  f"style-src 'sha256-{allowed['style']}'; "
                  "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                  "frame-ancestors 'none'")


def _logger():
    """aiohttp's, without what clients send that is no HTTP: that gets its answer, and is nothing to look into."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_no_fault_of_ours)
    return logger


def _no_fault_of_ours(record):
    return not (record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError))
