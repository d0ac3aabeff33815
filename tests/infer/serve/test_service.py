"""util/infer/service.py on a loopback socket, with a classifier that names the grey value of a picture."""
import asyncio
import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zlib

import browser
import numpy as np
import pytest
from PIL import Image

from util.images import decode
from util.infer import service
from util.infer.service import Limits, Refused, Service

K = 256


class Greys:
    """A picture's class is the grey value of its first pixel, with 0.75; its neighbours share the rest."""

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
        """While one request is being computed and does not end."""
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
    """Two rows for a util.look.figures.sheet, which say what they were asked for."""

    def prepare(self, picture):
        return np.asarray(decode.from_pil(picture, in_chans=1), "float32")[None] / 255

    def rows(self, image, **asked):
        if asked.get("mask_ratio") == 0.99:
            raise Refused(400, "?mask_ratio=0.99: too much")
        if asked.get("mask_ratio") == 0.2:
            time.sleep(0.5)
        return [(f"<b>{sorted(asked.items())}</b>", [("masked", "75% hidden", image), ("", "", 1 - image)])]


class Running:
    """A Service on a port of its own, in a thread."""

    def __init__(self, **options):
        self.classifier = options.pop("classifier", None) or Greys()
        self.lines, self.grace = [], options.pop("grace", 5.0)
        self.service = Service(self.classifier, log=self.lines.append, **{"batch_wait": 0.0, **options})
        self.listening = service.open_socket("127.0.0.1", 0)
        self.port = self.listening.getsockname()[1]

    def __enter__(self):
        ready = threading.Event()

        async def serve():
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
            await self.service.run(self.listening, self.stop, ready=ready.set, grace=self.grace)
        self.thread = threading.Thread(target=asyncio.run, args=[serve()])
        self.thread.start()
        assert ready.wait(10)
        self.classifier.batches.clear()  # the warm-up
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
        """(status, headers, bytes)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def post(self, path, body, kind="image/png", **headers):
        """(status, JSON)"""
        status, _, content = self.ask("POST", path, body, {"Content-Type": kind, **headers})
        return status, json.loads(content)

    def files(self, path, *files):
        return self.post(path, *multipart(*files))

    def metric(self, name):
        """{labels as text: number} of /metrics."""
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


def progressive(size):
    file = io.BytesIO()
    Image.new("L", size, 7).save(file, format="JPEG", progressive=True)
    return file.getvalue()


def multipart(*files, boundary="next"):
    """(body, Content-Type) of (file name, bytes), ..."""
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="x"; filename="{name}"\r\n\r\n'.encode()
             + data + b"\r\n"
             for name, data in files]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def header_of(width, height):
    """The first bytes of a PNG that says that it is so large, and has no pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def running():
    limits = Limits(body=40_000, images=3, pixels=10_000, queue=8, timeout=5.0)
    with Running(topk=2, limits=limits, attention=Panels(), reconstruct=Panels()) as running:
        yield running


def best(value, topk=2):
    return [{"class": f"grey <{number % K}>", "label": number % K, "probability": share}
            for number, share in ((value, 0.75), (value + 1, 0.125), (value + 2, 0.125))][:topk]


# ---- answers

@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream"])
def test_a_picture_as_the_body(running, kind):
    assert running.post("/predict", picture(17), kind) == (
        200, {"results": [{"name": "image", "classes": best(17)}], "model": "greys"})


def test_what_follows_a_jpeg_is_no_scan(running):
    assert running.post("/predict", picture(7, form="JPEG") + b"\xff\xda" * 1000, "image/jpeg")[0] == 200


def test_several_files_in_their_order(running):
    status, answer = running.files("/predict", ("b.png", picture(3)), ("a.bmp", picture(250, form="BMP")),
                                   ("c", picture(9)))
    assert status == 200 and answer["results"] == [
        {"name": "b.png", "classes": best(3)}, {"name": "a.bmp", "classes": best(250)},
        {"name": "c", "classes": best(9)}]


def test_topk(running):
    assert running.post("/predict?topk=3", picture(250))[1]["results"][0]["classes"] == best(250, 3)
    assert [found["label"] for found in running.post("/predict?topk=1000", picture(5))[1]["results"][0]["classes"]] == [
        5, 6, 7, *range(5), *range(8, K)]


def test_one_that_cannot_be_read_among_others(running):
    damaged = picture(1, size=(90, 90))[:-30]
    status, answer = running.files("/predict", ("a.png", picture(3)), ("b.txt", b"hello"), ("c.png", damaged))
    assert status == 200 and answer["results"][0] == {"name": "a.png", "classes": best(3)}
    assert [found["name"] for found in answer["results"]] == ["a.png", "b.txt", "c.png"]
    assert "not a picture in one of the formats JPEG, PNG" in answer["results"][1]["error"]
    assert "cannot be read as a picture: " in answer["results"][2]["error"]


def test_requests_at_the_same_time_are_one_batch_and_each_gets_its_own_answer():
    classifier = Greys()
    with (Running(classifier=classifier, batch_size=8, topk=1) as running,
          concurrent.futures.ThreadPoolExecutor(12) as pool):
        with classifier.busy(running):
            asked = [pool.submit(running.files, "/predict",
                                 *((str(value), picture(value)) for value in (number, 99 - number)))
                     for number in range(10)]
            running.wait_for(lambda: len(running.service.batches) == 20)
            started = time.monotonic()
            assert running.ask("GET", "/health")[0] == 200 and time.monotonic() - started < 1
        for number, future in enumerate(asked):
            assert future.result(10) == (200, {"model": "greys", "results": [
                {"name": str(value), "classes": best(value, 1)} for value in (number, 99 - number)]})
        assert classifier.batches == [1, 8, 8, 4]
        assert running.metric("mae_batch_images_bucket") == {
            'le="1.0"': 1, 'le="2.0"': 1, 'le="4.0"': 2, 'le="8.0"': 4, 'le="+Inf"': 4}


def test_figures(running):
    status, headers, png = running.ask("POST", "/attention", picture(51), {"Content-Type": "image/png"})
    assert status == 200 and headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(png)).width > 400
    status, answer = running.post("/reconstruct?mask_ratio=0.5&seed=7", *multipart(("boot.png", picture(51))),
                                  Accept="application/json")
    (row,) = answer["rows"]
    assert row["heading"] == "<b>[('mask_ratio', 0.5), ('name', 'boot.png'), ('seed', 7)]</b>"
    assert [(cell["title"], cell["note"]) for cell in row["cells"]] == [("masked", "75% hidden"), ("", "")]
    cells = [Image.open(io.BytesIO(base64.b64decode(cell["png"]))).convert("L").getpixel((0, 0))
             for cell in row["cells"]]
    assert cells == [51, 204]
    (row,) = running.post("/reconstruct", picture(1), Accept="application/json")[1]["rows"]
    assert "('mask_ratio', 0.75)" in row["heading"]


# ---- what is refused

@pytest.mark.parametrize("path, body, kind, status, sentence", [
    ("/predict", b"", "image/png", 400, "there is no picture in the request"),
    ("/predict", *multipart(), 400, "there is no picture in the request"),
    ("/predict", b"no boundary in it", "multipart/form-data; boundary=next", 400, "the body is damaged"),
    ("/predict", b"x", "multipart/form-data", 400, "the body is damaged"),
    ("/predict", multipart(("a.png", picture(1)))[0][:-12], "multipart/form-data; boundary=next", 400,
     "the body is damaged"),
    ("/predict", b'--next\r\nContent-Disposition: form-data; name="topk"\r\n\r\n3\r\n--next--\r\n',
     "multipart/form-data; boundary=next", 400, "field 'topk' is not a file"),
    ("/predict", b"--next\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in--\r\n--next--\r\n",
     "multipart/form-data; boundary=next", 400, "multipart body inside"),
    ("/predict?topk=0", picture(1), "image/png", 400, "?topk=0: expected a whole number of at least 1"),
    ("/predict?topk=five", picture(1), "image/png", 400, "?topk=five: expected a whole number"),
    ("/predict?topk=1&topk=2", picture(1), "image/png", 400, "more than once"),
    ("/predict?top_k=3", picture(1), "image/png", 400, "?top_k: expected ?topk="),
    ("/reconstruct?mask_ratio=1", picture(1), "image/png", 400, "?mask_ratio=1: expected a number above 0 and below 1"),
    ("/reconstruct?mask_ratio=nan", picture(1), "image/png", 400, "?mask_ratio=nan: expected"),
    ("/reconstruct?mask_ratio=0.99", picture(1), "image/png", 400, "too much"),
    ("/reconstruct?seed=-1", picture(1), "image/png", 400, "?seed=-1: expected a whole number of at least 0"),
    ("/predict", b"x" * 40_001, "image/png", 413, "larger than 0.0381"),
    ("/predict", *multipart(*[("a", picture(1))] * 4), 413, "more than 3 pictures"),
    ("/attention", *multipart(*[("a", picture(1))] * 2), 413, "more than 1 picture in"),
    ("/predict", header_of(101, 100), "image/png", 413, "101 x 100: more than 10,000 pixels"),
    ("/predict", header_of(20_000, 20_000), "image/png", 413, "more than 10,000 pixels"),  # beyond Pillow's own limit
    ("/predict", header_of(1, 101), "image/png", 413, "1 x 101: one side is more than 100 times the other"),
    ("/predict", progressive((90, 90)) + b"\xff\xda" * 100, "image/jpeg", 413, "90 x 90 pixels and 1"),
    ("/predict", picture(7, form="TIFF"), "image/tiff", 415, "not a picture in one of the formats"),
    ("/attention", header_of(101, 100), "image/png", 413, "101 x 100: more than 10,000 pixels"),
    ("/predict", b"hello", "image/png", 415, "image: not a picture in one of the formats"),
    ("/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png", 415,
     "not a picture in one of the formats"),
    ("/attention", b"hello", "image/png", 415, "image: not a picture in one of the formats"),
    ("/predict", picture(1), "application/x-www-form-urlencoded", 415, "expected multipart/form-data with files"),
    ("/predict", b"{}", "application/json", 415, "expected multipart/form-data with files"),
    ("/predict", picture(1, size=(90, 90))[:-30], "image/png", 422, "image: cannot be read as a picture"),
    ("/reconstruct", picture(1, size=(90, 90))[:-30], "image/png", 422, "image: cannot be read as a picture"),
    ("/predict", *multipart(("a", b"hello"), ("b", header_of(101, 100))), 422,
     "none of the 2 pictures can be read; a: not"),
    ("/", picture(1), "image/png", 405, "/ does not take POST"),
    ("/predictions", picture(1), "image/png", 404, "there is nothing at /predictions"),
])
def test_statuses(running, path, body, kind, status, sentence):
    found, answer = running.post(path, body, kind)
    assert found == status and sentence in answer["error"] and "\n" not in answer["error"]


def test_all_of_several_that_cannot_be_read_are_told_one_by_one(running):
    status, answer = running.files("/predict", ("a", b"hello"), ("b", b"there"))
    assert status == 415 and [found["name"] for found in answer["results"]] == ["a", "b"]


def test_encoded_bodies_are_not_unpacked(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    with contextlib.closing(connection):
        for _ in range(2):  # unpacking would find that it is damaged, and end the connection
            connection.request("POST", "/predict", b"not deflated" * 1000, {"Content-Encoding": "deflate"})
            answer = connection.getresponse()
            assert answer.status == 415 and "Content-Encoding 'deflate'" in json.loads(answer.read())["error"]
        assert connection.sock is not None
    part = (b'--next\r\nContent-Disposition: form-data; name="x"; filename="a.png"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\n"
            + base64.b64encode(picture(1)) + b"\r\n--next--\r\n")
    status, answer = running.post("/predict", part, "multipart/form-data; boundary=next")
    assert status == 415 and "a.png: encoded as 'base64'" in answer["error"]


def test_a_body_of_unknown_length_is_cut_off_while_it_is_read(running):
    sent = 0

    def chunks():
        nonlocal sent
        while sent < 10 ** 7:
            sent += 10_000
            yield b"x" * 10_000
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", chunks(), {"Content-Type": "image/png"}, encode_chunked=True)
            answer = connection.getresponse()
            assert answer.status == 413 and "larger than" in json.loads(answer.read())["error"]
    assert running.service.bytes.taken == 0


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("[::1]", 200),
    ("192.168.0.7", 200), ("evil.example", 421), ("evil.example:8000", 421),
    ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421)])
def test_names_of_other_hosts(running, host, status):
    found, _, content = running.ask("GET", "/health", headers={"Host": host})
    assert found == status and (status == 200 or "is not called" in json.loads(content)["error"])


def test_pages_of_other_sites_may_not_ask_and_get_no_permission_to_read(running):
    status, answer = running.post("/predict", picture(1), **{"Sec-Fetch-Site": "cross-site"})
    assert status == 403 and "another site" in answer["error"]
    _, headers, _ = running.ask("POST", "/predict", picture(1),
                                {"Origin": "http://evil.example", "Content-Type": "image/png"})
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert running.ask("OPTIONS", "/predict")[0] == 405


def test_a_fault_of_its_own_is_told_without_details_and_logged(capfd):
    class Broken(Greys):
        def probabilities(self, images):
            if images[0, 0, 0, 0] == 13:
                raise RuntimeError("secret detail")
            return super().probabilities(images)
    with Running(classifier=Broken()) as running:
        status, answer = running.post("/predict", picture(13))
        assert status == 500 and "secret" not in str(answer)
        assert running.post("/predict", picture(14))[0] == 200
        assert running.metric("mae_requests_total")['route="/predict",status="500"'] == 1
    assert "RuntimeError: secret detail" in capfd.readouterr().err


def test_without_figures_it_says_why():
    with Running(absent={"attention": "it is exported"}) as running:
        assert running.post("/attention", picture(1)) == (404, {"error": "it is exported"})
        assert running.post("/reconstruct", picture(1)) == (404, {"error": "this service has no /reconstruct"})
        health = json.loads(running.ask("GET", "/health")[2])
        assert health["attention"] is False and health["reconstruct"] is False


# ---- when there is too much

def test_when_the_queue_is_full():
    classifier = Greys()
    limits = Limits(queue=3, images=2)
    with Running(classifier=classifier, limits=limits) as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
        with classifier.busy(running) as first:
            second = pool.submit(running.files, "/predict", ("a", picture(2)), ("b", picture(3)))
            running.wait_for(lambda: len(running.service.batches) == 2)
            assert running.metric("mae_queue_images")[""] == 3
            status, headers, content = running.ask("POST", "/predict", picture(1), {"Content-Type": "image/png"})
            assert status == 503 and headers["Retry-After"] == "1" and "try again later" in json.loads(content)["error"]
        assert first.result(5)[0] == second.result(5)[0] == 200
        assert running.post("/predict", picture(1))[0] == 200 and running.metric("mae_queue_images")[""] == 0


def test_when_there_is_no_memory_for_more_bodies():
    # Room for eight bodies of the largest size.
    with Running(limits=Limits(body=100_000, timeout=5.0)) as running, contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000\r\n\r\n"
                           + b"x" * 98_999)
        running.wait_for(lambda: running.service.bytes.taken == 8 * 98_999)
        assert running.post("/predict", picture(1) + bytes(20_000))[0] == 503
        assert running.post("/predict", picture(1))[0] == 200  # a small one finds room


def test_when_the_answer_takes_too_long():
    classifier = Greys()
    with Running(classifier=classifier, limits=Limits(timeout=0.3)) as running:
        with classifier.busy(running) as first:
            started = time.monotonic()
            status, answer = running.post("/predict", picture(5))
            assert status == 504 and "within 0.3 s" in answer["error"] and time.monotonic() - started < 2
            assert first.result(5)[0] == 504
            assert len(running.service.batches) == 0 and running.service.images.taken == 0
        running.wait_for(lambda: running.post("/predict", picture(1))[0] == 200)


def test_slow_clients_are_cut_off():
    with Running(limits=Limits(timeout=0.4)) as running:
        def said(sent):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as client:
                client.sendall(sent)
                started = time.monotonic()
                parts = []
                while part := client.recv(2 ** 16):
                    parts.append(part)
                    if b"}" in part:
                        break
                return b"".join(parts), time.monotonic() - started
        answer, seconds = said(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        assert answer.startswith(b"HTTP/1.1 408") and b"has not arrived within 0.4 s" in answer and seconds < 3
        answer, seconds = said(b"POST /predict HTTP/1.1\r\nHost: loc")  # not even a whole head
        assert answer == b"" and seconds < 3


def test_the_work_of_a_client_that_goes_away_is_dropped():
    classifier = Greys()
    with Running(classifier=classifier) as running:
        with classifier.busy(running):
            client = socket.create_connection(("127.0.0.1", running.port), timeout=5)
            body = picture(77)
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
                           + body)
            running.wait_for(lambda: len(running.service.batches) == 1)
            client.close()
            running.wait_for(lambda: len(running.service.batches) == 0)
            assert running.service.images.taken == 1
        assert running.post("/predict", picture(1))[0] == 200
        assert classifier.batches == [1, 1]
        assert running.metric("mae_requests_total")['route="/predict",status="499"'] == 1


def test_clients_that_go_away_in_the_middle_of_a_body_or_talk_nonsense_leave_nothing_behind(capfd, caplog):
    with Running() as running:
        for rest in (b"Content-Length: 1000\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n9\r\nx",
                     b"Content-Type: multipart/form-data; boundary=next\r\nContent-Length: 1000\r\n\r\n--next\r\n"):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as client:
                client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + rest)
                running.wait_for(lambda: running.service.images.taken == 1)
            running.wait_for(lambda: running.service.images.taken == 0)
        for nonsense in (b"\x16\x03\x01 no HTTP at all\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as client:
                client.sendall(nonsense)
                assert re.match(rb"HTTP/1.\d 400", client.recv(100))
        assert running.post("/predict", picture(1))[0] == 200
    assert capfd.readouterr().err == "" and not caplog.records


def test_what_is_in_work_is_finished_and_nothing_else_begun_when_it_ends():
    classifier = Greys()
    with Running(classifier=classifier) as running:
        with classifier.busy(running) as first:
            running.end()
            running.wait_for(lambda: running.service.stopping)
            status, _, content = running.ask("GET", "/health")
            assert status == 503 and json.loads(content)["status"] == "stopping"
            assert running.post("/predict", picture(1)) == (503, {"error": "the service is shutting down"})
        status, answer = first.result(5)
        assert status == 200 and answer["results"][0]["classes"][:2] == best(1)
        running.thread.join(5)
        with pytest.raises(ConnectionRefusedError):
            running.listening.close()
            running.ask("GET", "/health")
    assert classifier.batches == [1]


def test_nobody_holds_up_its_end_for_long():
    with Running(grace=0.2) as running, socket.create_connection(("127.0.0.1", running.port), timeout=5) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        running.wait_for(lambda: running.service.images.taken == 1)
        running.end()
        running.thread.join(4)
        assert not running.thread.is_alive()


# ---- what it tells about itself

def test_health_and_metrics_tell_what_happened():
    with Running(about={"engine": "none"}) as running:
        for _ in range(3):
            running.post("/predict", picture(1))
        running.files("/predict", ("a", picture(1)), ("b", b"hello"))
        running.post("/predict", b"hello")
        running.ask("GET", "/nowhere")
        health = json.loads(running.ask("GET", "/health")[2])
        assert 0 <= health.pop("uptime_s") < 60
        assert health == {"status": "ok", "model": "greys", "classes": K, "engine": "none", "queue": 0,
                          "attention": False,
                          "reconstruct": False}
        assert running.metric("mae_requests_total") == {
            'route="/predict",status="200"': 4, 'route="/predict",status="415"': 1, 'route="other",status="404"': 1,
            'route="/health",status="200"': 1}
        assert running.metric("mae_request_seconds_count")['route="/predict"'] == 5
        assert running.metric("mae_images_total") == {"": 6}
        assert running.metric("mae_images_unreadable_total") == {"": 2}
        assert running.metric("process_resident_memory_bytes")[""] > 10 ** 7
    assert [line.split()[1:4] for line in running.lines[3:6]] == [
        ["POST", "/predict", "200"], ["POST", "/predict", "415"], ["GET", "/nowhere", "404"]]


def test_a_port_that_is_in_use():
    with contextlib.closing(service.open_socket("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert service.url(listening) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ValueError, match=f"--port {port}: cannot be listened at .*in use"):
            service.open_socket("127.0.0.1", port)
    with pytest.raises(ValueError, match="--host no.such.host.invalid"):
        service.open_socket("no.such.host.invalid", 8000)
    with pytest.raises(ValueError, match="--port 70000"):
        service.open_socket("127.0.0.1", 70000)


@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader", "ignore::aiohttp.BadContentDispositionParam")
def test_every_kind_of_damage_to_a_multipart_body_is_the_clients_fault(running):
    body, kind = multipart(("a.png", picture(1)), ("b.png", picture(2)))
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(body)
        for place in rng.integers(len(body), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        start, end = sorted(rng.integers(len(body), size=2))
        if rng.random() < 0.5:
            del damaged[start:end]
        status, answer = running.post("/predict", bytes(damaged), kind)
        assert status in (200, 400, 413, 415, 422), answer


# ---- the page

@pytest.mark.skipif(not browser.available(), reason="no Chromium")
def test_the_page(tmp_path):
    (tmp_path / "<i>boot.png").write_bytes(picture(200, size=(40, 30)))
    with Running(topk=3, attention=Panels(), reconstruct=Panels()) as running:
        with browser.page(f"http://127.0.0.1:{running.port}/", width=390) as page:
            page.wait_for("document.querySelector('#model').textContent.startsWith('greys, 256 classes')")
            assert not page.evaluate("document.querySelector('#controls').hidden")
            page.choose_file("#choose", tmp_path / "<i>boot.png")
            page.wait_for("document.querySelectorAll('#classes li').length == 3 && document.images.length == 5")
            lines = page.evaluate("[...document.querySelectorAll('#classes li')].map(line => line.innerText)")
            assert [line.split() for line in lines] == [
                ["grey", "<200>", "75.0%"], ["grey", "<201>", "12.5%"], ["grey", "<202>", "12.5%"]]
            assert page.evaluate("document.querySelector('.track div').getBoundingClientRect().width / "
                                 "document.querySelector('.track').getBoundingClientRect().width") == pytest.approx(
                                     0.75, abs=0.01)
            heading = "document.querySelector('#reconstruct .heading').textContent"
            assert page.evaluate(heading) == "<b>[('mask_ratio', 0.75), ('name', '<i>boot.png'), ('seed', 0)]</b>"
            # The slider on its way: only where it comes to rest is asked for.
            page.evaluate("for (const value of [50, 40, 30]) { const ratio = document.querySelector('#ratio'); "
                          "ratio.value = value; ratio.dispatchEvent(new Event('input')); }")
            page.wait_for(f"{heading}.includes('0.3)')")
            assert page.evaluate("document.querySelector('#share').textContent") == "30%"
            asked = [re.sub(".*/", "", address) for address in page.requests if "reconstruct" in address]
            assert asked == ["reconstruct?mask_ratio=0.75&seed=0", "reconstruct?mask_ratio=0.3&seed=0"]
            # A newer question ends the one that is being answered.
            move = ("document.querySelector('#ratio').value = {}; "
                    "document.querySelector('#ratio').dispatchEvent(new Event('input'))")
            page.evaluate(move.format(20))
            running.wait_for(lambda: running.service.images.taken)
            page.evaluate(move.format(90))
            page.wait_for(f"{heading}.includes('0.9)')")
            assert running.metric("mae_requests_total")['route="/reconstruct",status="499"'] == 1
            page.evaluate("document.querySelector('#language').click()")
            assert page.evaluate("document.querySelector('h1').innerText") == "模型看到了什么？"
            assert {"模型看到的", "遮住 75%"} <= set(page.text().splitlines()) and not page.overflows()
            assert page.evaluate("document.querySelectorAll('main i, main b').length") == 0
            # Something that is no picture, by another way.
            page.evaluate("""(() => { const data = new DataTransfer();
                              data.items.add(new File(["hello"], "x.png", {type: "image/png"}));
                              dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true})); })()""")
            page.wait_for("document.querySelector('#classes-state').textContent"
                          ".startsWith('不是这里能读的图片：x.png: not')")
            assert page.evaluate("document.querySelectorAll('#classes li').length") == 0
            own = f"http://127.0.0.1:{running.port}/"
            assert all(address.startswith((own, "blob:", "data:")) for address in page.requests)
            assert not page.complaints


def test_the_page_may_do_nothing_that_it_does_not_do(running):
    _, headers, content = running.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Content-Type"].startswith("text/html")
    assert b"http" not in content and b"innerHTML" not in content
