"""Uploads: the pictures in a request, within limits of memory and time whatever clients send."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Awaitable, Callable

from aiohttp import http_exceptions, web
from PIL import Image

from util.images import decode

# Formats that are accepted. Pillow reads more: some by other programs, some (TIFF) in tiles that may be much
# larger than the picture.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
# Scans of a progressive JPEG of Limits.pixels. Each costs time, but few bytes; encoders write ten.
MAX_SCANS = 20
MAX_ASPECT = 100  # long side / short side
CHUNK = 2**16  # bytes read at once
CLIENT_GONE = 499  # nginx's status for a client that closed the connection

# aiohttp raises one of these for a body that does not fit its Content-Type.
MALFORMED = (ValueError, http_exceptions.HttpProcessingError, web.RequestPayloadError)

Upload = tuple[str, bytes]  # (name, content)


class Refused(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        sentence: reason.
        more: further entries of the JSON answer.
    """

    def __init__(self, status: int, sentence: str, **more: object) -> None:
        self.status, self.sentence, self.more = status, sentence, more
        super().__init__(status, sentence)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Args:
        body: bytes of a request's body.
        images: pictures in a request.
        pixels: width times height of a picture.
        queue: pictures of all requests that are being read, wait or are computed.
        timeout: seconds for a body to arrive, and again for its answer.
    """

    body: int = 32 * 2**20
    images: int = 32
    pixels: int = 50_000_000
    queue: int = 128
    timeout: float = 30.0


class Budget:
    """Amount of a resource that all requests share."""

    def __init__(self, total: int) -> None:
        self.total, self.taken = total, 0

    def share(self) -> Share:
        """Return an empty share, as a context that gives it back at its end."""
        return Share(self)


class Share:
    """Part of a Budget that one request has taken."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.taken = budget, 0

    def take(self, amount: int) -> None:
        """Take more of the budget. Raises Refused if too little is left."""
        if self.budget.taken + amount > self.budget.total:
            raise Refused(503, "the service is busy; try again later")
        self.budget.taken += amount
        self.taken += amount

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *error: object) -> None:
        self.budget.taken -= self.taken


class UploadReader:
    """Reader of the pictures in a request's body: multipart/form-data, or one picture as the body."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    async def read(self, request: web.Request, memory: Share, most: int) -> list[Upload]:
        """Read up to `most` pictures of a request. Raises Refused for anything else.

        Args:
            memory: share of the bytes that all bodies may take.
        """
        if (request.content_length or 0) > self.limits.body:
            raise self._too_large()
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(
                415,
                f"Content-Encoding {request.headers['Content-Encoding']!r} is not accepted; "
                "send pictures without it",
            )
        try:
            pictures = await asyncio.wait_for(self._body(request, memory, most), self.limits.timeout)
        except asyncio.TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self.limits.timeout:g} s") from error
        except ConnectionError as error:
            raise Refused(CLIENT_GONE, "the client closed the connection") from error
        except MALFORMED as error:
            raise Refused(400, "the body is damaged, or does not fit its Content-Type") from error
        if not pictures:
            raise Refused(
                400,
                "there is no picture in the request; send multipart/form-data with files, or "
                "one picture as the body",
            )
        return pictures

    async def _body(self, request, memory, most):
        kind = request.content_type  # application/octet-stream if there is none
        if kind == "application/octet-stream" or kind.startswith("image/"):
            data = await self._content(request.content.read, request, memory)
            return [("image", data)] if data else []
        if kind != "multipart/form-data":
            raise Refused(
                415,
                f"Content-Type {kind!r}: expected multipart/form-data with files, or image/* "
                "or application/octet-stream with one picture as the body",
            )
        pictures: list[Upload] = []
        async for part in await request.multipart():
            self._check_part(part)
            if len(pictures) == most:
                raise Refused(413, f"more than {most} {'picture' if most == 1 else 'pictures'} in a request")
            name = part.filename or part.name or "image"
            pictures.append((name, await self._content(part.read_chunk, request, memory)))
        return pictures

    def _check_part(self, part):
        if not hasattr(part, "read_chunk"):
            raise Refused(400, "a multipart body inside the multipart body is not accepted; send files")
        if part.filename is None and not part.headers.get("Content-Type", "").startswith("image/"):
            raise Refused(400, f"field {part.name!r} is not a file; pass options in the URL, such as ?topk=3")
        if {"Content-Encoding", "Content-Transfer-Encoding"} & part.headers.keys():
            coding = part.headers.get("Content-Encoding", part.headers.get("Content-Transfer-Encoding"))
            if coding.lower() not in ("identity", "binary", "8bit"):
                raise Refused(
                    415,
                    f"{part.filename or part.name}: the encoding {coding!r} is not accepted; "
                    "send pictures without it",
                )

    async def _content(self, read: Callable[[int], Awaitable[bytes]], request, memory):
        chunks = []
        while chunk := await read(CHUNK):
            if request.content.total_bytes > self.limits.body:
                raise self._too_large()
            memory.take(len(chunk))
            chunks.append(bytes(chunk))
        return b"".join(chunks)

    def _too_large(self):
        return Refused(413, f"the body is larger than {self.limits.body / 2**20:g} MB")

    def open_picture(self, data: bytes) -> Image.Image:
        """Open a picture without decoding it. Raises Refused if, by its header, decoding would take too much.

        The file is opened once only, because one reader may see a small picture in it and another a large
        one.
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
            MAX_SCANS * self.limits.pixels
        ):
            raise Refused(
                413, f"a progressive JPEG of {width} x {height} pixels and {scans} scans takes too long"
            )
        if max(width, height) > MAX_ASPECT * min(width, height):  # resizing its short side would make it huge
            raise Refused(413, f"{width} x {height}: one side is more than {MAX_ASPECT} times the other")
        return image
