"""HTTP service around a classifier: routes and answers.

    GET  /              web page
    POST /predict       pictures -> classes, JSON
    POST /attention     a picture -> its attention maps, PNG or JSON
    POST /reconstruct   a picture -> its reconstruction by a masked autoencoder, PNG or JSON
    GET  /health        JSON
    GET  /metrics       text format of Prometheus

Pictures are sent as multipart/form-data, or one as the body. Every error is JSON, {"error": sentence}. Memory
and time are bounded whatever clients send, see util.infer.serve.uploads.Limits.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import dataclasses
import hashlib
import io
import logging
import math
import re
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import http_exceptions, web
from PIL import Image

from util.images import decode
from util.infer.classifier import ImageClassifier
from util.infer.serve.figures import Figure, Rows
from util.infer.serve.metrics import CONTENT_TYPE, Metrics
from util.infer.serve.micro_batches import MicroBatches
from util.infer.serve.sockets import is_address
from util.infer.serve.uploads import CLIENT_GONE, Budget, Limits, Refused, UploadReader
from util.look.figures import sheet, to_image

DECODERS = 2  # threads
UPLOADS = 8  # bodies of the largest size that fit into memory together
RETRY_AFTER = 1  # seconds
CLOSING = 1.0  # seconds to write the last answers
OTHER = "other"  # route of unknown paths in the metrics


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a service.

    Args:
        topk: classes in an answer, unless the request has ?topk=.
        batch_size: pictures computed together.
        batch_wait: seconds that a picture waits for others.
        names: host names of this machine, besides localhost and IP addresses.
    """

    topk: int = 5
    batch_size: int = 8
    batch_wait: float = 0.005
    limits: Limits = Limits()
    names: Sequence[str] = ()


class Service:
    """Service that answers requests; `run` starts it on a socket.

    Args:
        about: further entries of /health.
        figures: drawings for /attention and /reconstruct; a missing one is answered with 404.
        absent: reason for a missing figure.
        log: called with a line for each request.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        settings: Settings | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        figures: Mapping[str, Figure] | None = None,
        absent: Mapping[str, str] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.classifier, self.settings = classifier, settings or Settings()
        self.about, self.figures, self.absent, self.log = about or {}, figures or {}, absent or {}, log
        self.limits = self.settings.limits
        self.names = {"localhost", *(name.lower() for name in self.settings.names)}
        self.started, self.stopping = time.monotonic(), False
        self.images, self.bytes = Budget(self.limits.queue), Budget(UPLOADS * self.limits.body)
        self.uploads = UploadReader(self.limits)
        self.metrics = Metrics(self.settings.batch_size, lambda: self.images.taken)
        self.page, self.page_policy = _read_page()

    async def run(
        self,
        listening: socket.socket,
        stop: asyncio.Event,
        *,
        ready: Callable[[], None] = lambda: None,
        grace: float = 10.0,
    ) -> None:
        """Answer requests on a socket until `stop` is set.

        Then new work is refused and /health returns 503. Running work has `grace` seconds to finish.

        Args:
            ready: called once requests are answered.
        """
        self.batches = MicroBatches(
            self._classify,
            batch_size=self.settings.batch_size,
            wait=self.settings.batch_wait,
            observe=self.metrics.batches.observe,
        )
        self.decoders = concurrent.futures.ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        # keepalive_timeout closes connections without a complete request. Compressed bodies are refused.
        runner = web.AppRunner(
            self._application(),
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            logger=_logger(),
            keepalive_timeout=self.limits.timeout,
            shutdown_timeout=CLOSING,
        )
        await runner.setup()
        try:
            # The first answer is slow, and fails if the model cannot be computed.
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
        application.add_routes(
            [
                web.get("/", self._front_page),
                web.post("/predict", self._predict),
                web.post("/attention", self._attention),
                web.post("/reconstruct", self._reconstruct),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics_text),
            ]
        )
        return application

    @web.middleware
    async def _answered(self, request, handler):
        """Turn errors into JSON answers; count, time and log every request."""
        started, status = time.monotonic(), CLIENT_GONE
        route = request.match_info.route.resource
        route = OTHER if route is None else route.canonical
        try:
            response = await self._answer(request, handler)
            status = response.status
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Cache-Control"] = "no-store"
            return response
        finally:
            seconds = time.monotonic() - started
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            self.log(f"{request.remote} {request.method} {request.rel_url!s} {status} {1e3 * seconds:.0f} ms")

    async def _answer(self, request, handler):
        try:
            self._check_origin(request)
            return await handler(request)
        except Refused as refused:
            headers = {"Retry-After": str(RETRY_AFTER)} if refused.status == 503 else None
            return web.json_response(
                {"error": refused.sentence, **refused.more}, status=refused.status, headers=headers
            )
        except web.HTTPException as error:
            sentences = {
                404: f"there is nothing at {request.path}",
                405: f"{request.path} does not take {request.method}",
            }
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return web.json_response(
                {"error": sentences.get(error.status, error.reason)}, status=error.status, headers=headers
            )
        except Exception:  # a bug: the client gets no traceback, and the service continues
            traceback.print_exc()
            return web.json_response({"error": "internal error; see the log of the service"}, status=500)

    def _check_origin(self, request):
        """Refuse requests from pages of another site in a visitor's browser (CSRF, DNS rebinding)."""
        host = request.headers.get("Host")  # browsers always send it
        if host is not None:
            name = re.sub(r":\d+$", "", host).strip("[]").lower().rstrip(".")
            if name not in self.names and not is_address(name):
                raise Refused(
                    421,
                    f"this service is not called {name!r}; use its IP address, or put that "
                    "into the Host header",
                )
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise Refused(403, "requests from pages of another site are not accepted")

    # Routes

    async def _front_page(self, request):
        return web.Response(
            text=self.page,
            content_type="text/html",
            headers={"Content-Security-Policy": self.page_policy, "Referrer-Policy": "no-referrer"},
        )

    async def _health(self, request):
        return web.json_response(
            {
                "status": "stopping" if self.stopping else "ok",
                "model": self._model_name(),
                "classes": len(self.classifier.names),
                **self.about,
                "queue": self.images.taken,
                "uptime_s": round(time.monotonic() - self.started, 1),
                **{figure: figure in self.figures for figure in ("attention", "reconstruct")},
            },
            status=503 if self.stopping else 200,
        )

    async def _metrics_text(self, request):
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _predict(self, request):
        topk = _parameters(request, topk=(self.settings.topk, _integer(1)))["topk"]
        with self.images.share() as places, self.bytes.share() as memory:
            pictures = await self._pictures(request, memory, places, self.limits.images)
            answers = await self._in_time(self._probabilities(pictures))
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        results = [
            {"name": name, "error": answer.sentence}
            if isinstance(answer, Refused)
            else {"name": name, "classes": self._top_classes(answer, topk)}
            for (name, _), answer in zip(pictures, answers, strict=True)
        ]
        self.metrics.images.inc(len(results))
        self.metrics.unreadable.inc(len(refused))
        if len(refused) == len(results):
            raise _all_refused(refused, results)
        return web.json_response({"results": results, "model": self._model_name()})

    async def _attention(self, request):
        self._check_offered("attention")
        _parameters(request)
        return await self._draw(request, "attention")

    async def _reconstruct(self, request):
        self._check_offered("reconstruct")
        asked = _parameters(request, mask_ratio=(0.75, _share), seed=(0, _integer(0)))
        return await self._draw(request, "reconstruct", **asked)

    def _check_offered(self, figure):
        if figure not in self.figures:
            raise Refused(404, self.absent.get(figure, f"this service has no /{figure}"))

    async def _draw(self, request, kind, **asked):
        """Draw the picture of a request: PNG, or JSON with each cell if the client accepts that."""
        figure = self.figures[kind]
        as_json = "application/json" in request.headers.get("Accept", "")

        async def drawn(name, data):
            image = await self._in_decoder(self._prepared, data, figure.prepare)
            if isinstance(image, Refused):
                self.metrics.unreadable.inc()
                raise Refused(image.status, f"{name}: {image.sentence}")
            rows = await self.batches.alone(
                lambda: figure.rows(image, **asked, **({"name": name} if asked else {}))
            )
            return await self._in_decoder(_rows_as_json if as_json else lambda rows: _png(sheet(rows)), rows)

        with self.images.share() as places, self.bytes.share() as memory:
            (picture,) = await self._pictures(request, memory, places, 1)
            self.metrics.images.inc()
            answer = await self._in_time(drawn(*picture))
        return web.json_response(answer) if as_json else web.Response(body=answer, content_type="image/png")

    # Steps of the routes

    async def _pictures(self, request, memory, places, most):
        """Read the pictures of a request and take their places in the queue."""
        if self.stopping:
            raise Refused(503, "the service is shutting down")
        places.take(1)  # first, because an upload to a full queue would be wasted
        pictures = await self.uploads.read(request, memory, most)
        places.take(len(pictures) - 1)
        return pictures

    async def _probabilities(self, pictures):
        """Compute probabilities [K] of each picture, or Refused."""
        prepared = await asyncio.gather(
            *(self._in_decoder(self._prepared, data, self.classifier.prepare) for _, data in pictures)
        )
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
        """Decode a picture and pass it to `prepare`. Returns Refused if it cannot be read."""
        try:
            with self.uploads.open_picture(data) as image:
                return prepare(image)
        except decode.UnreadableImage as error:
            return Refused(422, f"cannot be read as a picture: {error.reason}")
        except Refused as refused:
            return refused

    def _classify(self, images):
        return self.classifier.probabilities(np.stack(images))

    def _top_classes(self, probabilities, topk):
        labels = np.argsort(-probabilities, kind="stable")[:topk]  # ties in the order of the labels
        return [
            {
                "class": self.classifier.names[label],
                "label": label,
                "probability": float(probabilities[label]),
            }
            for label in labels.tolist()
        ]

    def _model_name(self):
        return self.classifier.info["model"]["name"]


def _all_refused(refused, results):
    statuses = {one.status for one in refused}
    first = f"{results[0]['name']}: {refused[0].sentence}"
    return Refused(
        statuses.pop() if len(statuses) == 1 else 422,
        first if len(results) == 1 else f"none of the {len(results)} pictures can be read; {first}",
        results=results,
    )


def _parameters(request, **known):
    """Parse the query into {name: value}; `known` is {name: (default, function from text to value)}."""
    for name in request.query:
        if name not in known:
            usual = " or ".join(f"?{option}=" for option in known) or "no query"
            raise Refused(400, f"?{name}: expected {usual}")
        if len(request.query.getall(name)) > 1:
            raise Refused(400, f"?{name}= is given more than once")
    values = {}
    for name, (default, parse) in known.items():
        try:
            values[name] = parse(request.query[name]) if name in request.query else default
        except ValueError as error:
            raise Refused(400, f"?{name}={request.query[name]}: expected {error}") from error
    return values


def _integer(least):
    def parse(text):
        if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
            raise ValueError(f"an integer of at least {least}")
        return int(text)

    return parse


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


def _rows_as_json(rows: Rows) -> dict[str, Any]:
    """Encode the rows of a util.look.figures.sheet, each cell as a PNG in base64."""
    return {
        "rows": [
            {
                "heading": heading,
                "cells": [
                    {"title": title, "note": note, "png": base64.b64encode(_png(to_image(picture))).decode()}
                    for title, note, picture in cells
                ],
            }
            for heading, cells in rows
        ]
    }


def _read_page():
    """Read the web page, and make a Content-Security-Policy that allows its own script and style alone."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    allowed = {}
    for element in ("script", "style"):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", text, flags=re.DOTALL)
        allowed[element] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return text, (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; "
        f"style-src 'sha256-{allowed['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _logger():
    """Return aiohttp's logger, without records of malformed requests, which are the client's fault."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_is_own_fault)
    return logger


def _is_own_fault(record):
    return not (record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError))
