"""The HTTP service on a loopback socket: answers, refusals, limits, the web page."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import time
import zlib

import browser
import numpy as np
import pytest
from PIL import Image
from running_service import Greys, K, Panels, Running, multipart, picture

from util.infer.serve.sockets import is_loopback, open_socket, url_of
from util.infer.serve.uploads import Limits


def progressive(size):
    file = io.BytesIO()
    Image.new("L", size, 7).save(file, format="JPEG", progressive=True)
    return file.getvalue()


def header_of(width, height):
    """Return a PNG whose header claims this size and that has no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def running():
    limits = Limits(body=40_000, images=3, pixels=10_000, queue=8, timeout=5.0)
    with Running(topk=2, limits=limits, figures={"attention": Panels(), "reconstruct": Panels()}) as running:
        yield running


def best(value, topk=2):
    return [
        {"class": f"grey <{number % K}>", "label": number % K, "probability": share}
        for number, share in ((value, 0.75), (value + 1, 0.125), (value + 2, 0.125))
    ][:topk]


# ---- answers


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream"])
def test_a_picture_as_the_body(running, kind):
    assert running.post("/predict", picture(17), kind) == (
        200,
        {"results": [{"name": "image", "classes": best(17)}], "model": "greys"},
    )


def test_bytes_after_a_jpeg_are_no_scans(running):
    assert running.post("/predict", picture(7, form="JPEG") + b"\xff\xda" * 1000, "image/jpeg")[0] == 200


def test_several_files_in_their_order(running):
    status, answer = running.files(
        "/predict", ("b.png", picture(3)), ("a.bmp", picture(250, form="BMP")), ("c", picture(9))
    )
    assert status == 200 and answer["results"] == [
        {"name": "b.png", "classes": best(3)},
        {"name": "a.bmp", "classes": best(250)},
        {"name": "c", "classes": best(9)},
    ]


def test_topk(running):
    assert running.post("/predict?topk=3", picture(250))[1]["results"][0]["classes"] == best(250, 3)
    assert [
        found["label"] for found in running.post("/predict?topk=1000", picture(5))[1]["results"][0]["classes"]
    ] == [5, 6, 7, *range(5), *range(8, K)]


def test_an_unreadable_picture_among_others(running):
    damaged = picture(1, size=(90, 90))[:-30]
    status, answer = running.files("/predict", ("a.png", picture(3)), ("b.txt", b"hello"), ("c.png", damaged))
    assert status == 200 and answer["results"][0] == {"name": "a.png", "classes": best(3)}
    assert [found["name"] for found in answer["results"]] == ["a.png", "b.txt", "c.png"]
    assert all(found["error"] for found in answer["results"][1:])


def test_concurrent_requests_share_batches():
    classifier = Greys()
    with (
        Running(classifier=classifier, batch_size=8, topk=1) as running,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        with classifier.busy(running):
            asked = [
                pool.submit(
                    running.files,
                    "/predict",
                    *((str(value), picture(value)) for value in (number, 99 - number)),
                )
                for number in range(10)
            ]
            running.wait_for(lambda: len(running.service.batches) == 20)
            started = time.monotonic()
            assert running.ask("GET", "/health")[0] == 200 and time.monotonic() - started < 1
        for number, future in enumerate(asked):
            assert future.result(10) == (
                200,
                {
                    "model": "greys",
                    "results": [
                        {"name": str(value), "classes": best(value, 1)} for value in (number, 99 - number)
                    ],
                },
            )
        assert classifier.batches == [1, 8, 8, 4]
        assert running.metric("mae_batch_images_bucket") == {
            'le="1.0"': 1,
            'le="2.0"': 1,
            'le="4.0"': 2,
            'le="8.0"': 4,
            'le="+Inf"': 4,
        }


def test_figures(running):
    status, headers, png = running.ask("POST", "/attention", picture(51), {"Content-Type": "image/png"})
    assert status == 200 and headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(png)).width > 400
    status, answer = running.post(
        "/reconstruct?mask_ratio=0.5&seed=7", *multipart(("boot.png", picture(51))), Accept="application/json"
    )
    (row,) = answer["rows"]
    assert row["heading"] == "<b>[('mask_ratio', 0.5), ('name', 'boot.png'), ('seed', 7)]</b>"
    assert [(cell["title"], cell["note"]) for cell in row["cells"]] == [("masked", "75% hidden"), ("", "")]
    cells = [
        Image.open(io.BytesIO(base64.b64decode(cell["png"]))).convert("L").getpixel((0, 0))
        for cell in row["cells"]
    ]
    assert cells == [51, 204]
    (row,) = running.post("/reconstruct", picture(1), Accept="application/json")[1]["rows"]
    assert "('mask_ratio', 0.75)" in row["heading"]


# ---- what is refused

BAD_REQUESTS = {
    400: [
        ("/predict", b"", "image/png"),
        ("/predict", *multipart()),
        ("/predict", b"no boundary in it", "multipart/form-data; boundary=next"),
        ("/predict", b"x", "multipart/form-data"),
        ("/predict", multipart(("a.png", picture(1)))[0][:-12], "multipart/form-data; boundary=next"),
        (
            "/predict",
            b'--next\r\nContent-Disposition: form-data; name="topk"\r\n\r\n3\r\n--next--\r\n',
            "multipart/form-data; boundary=next",
        ),
        (
            "/predict",
            b"--next\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in--\r\n--next--\r\n",
            "multipart/form-data; boundary=next",
        ),
        *(
            (path, picture(1), "image/png")
            for path in (
                "/predict?topk=0",
                "/predict?topk=five",
                "/predict?topk=1&topk=2",
                "/predict?top_k=3",
                "/reconstruct?mask_ratio=1",
                "/reconstruct?mask_ratio=nan",
                "/reconstruct?mask_ratio=0.99",
                "/reconstruct?seed=-1",
            )
        ),
    ],
    404: [("/predictions", picture(1), "image/png")],
    405: [("/", picture(1), "image/png")],
    413: [
        ("/predict", b"x" * 40_001, "image/png"),
        ("/predict", *multipart(*[("a", picture(1))] * 4)),
        ("/attention", *multipart(*[("a", picture(1))] * 2)),
        ("/predict", header_of(101, 100), "image/png"),
        ("/predict", header_of(20_000, 20_000), "image/png"),  # beyond Pillow's own limit
        ("/predict", header_of(1, 101), "image/png"),
        ("/attention", header_of(101, 100), "image/png"),
        ("/predict", progressive((90, 90)) + b"\xff\xda" * 100, "image/jpeg"),
    ],
    415: [
        ("/predict", picture(7, form="TIFF"), "image/tiff"),
        ("/predict", b"hello", "image/png"),
        ("/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png"),
        ("/attention", b"hello", "image/png"),
        ("/predict", picture(1), "application/x-www-form-urlencoded"),
        ("/predict", b"{}", "application/json"),
    ],
    422: [
        ("/predict", picture(1, size=(90, 90))[:-30], "image/png"),
        ("/reconstruct", picture(1, size=(90, 90))[:-30], "image/png"),
        ("/predict", *multipart(("a", b"hello"), ("b", header_of(101, 100)))),
    ],
}


def test_statuses_of_bad_requests(running):
    for status, requests in BAD_REQUESTS.items():
        for path, body, kind in requests:
            found, answer = running.post(path, body, kind)
            assert found == status and answer["error"], (path, body[:80], answer)


def test_several_unreadable_pictures_are_reported_one_by_one(running):
    status, answer = running.files("/predict", ("a", b"hello"), ("b", b"there"))
    assert status == 415 and [found["name"] for found in answer["results"]] == ["a", "b"]


def test_encoded_bodies_are_not_unpacked(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    with contextlib.closing(connection):
        for _ in range(2):  # decompressing it would fail, and close the connection
            connection.request("POST", "/predict", b"not deflated" * 1000, {"Content-Encoding": "deflate"})
            answer = connection.getresponse()
            assert answer.status == 415 and "deflate" in json.loads(answer.read())["error"]
        assert connection.sock is not None
    part = (
        b'--next\r\nContent-Disposition: form-data; name="x"; filename="a.png"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(picture(1)) + b"\r\n--next--\r\n"
    )
    status, answer = running.post("/predict", part, "multipart/form-data; boundary=next")
    assert status == 415 and "base64" in answer["error"]


def test_a_body_of_unknown_length_is_cut_off(running):
    sent = 0

    def chunks():
        nonlocal sent
        while sent < 10**7:
            sent += 10_000
            yield b"x" * 10_000

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/predict", chunks(), {"Content-Type": "image/png"}, encode_chunked=True
            )
            answer = connection.getresponse()
            assert answer.status == 413 and answer.read()
    assert running.service.bytes.taken == 0


def test_names_of_other_hosts(running):
    """DNS rebinding: a foreign name that resolves to this machine is refused."""
    statuses = dict.fromkeys(
        ("127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "192.168.0.7"), 200
    )
    statuses |= dict.fromkeys(("evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"), 421)
    for host, status in statuses.items():
        assert running.ask("GET", "/health", headers={"Host": host})[0] == status, host
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "evil.example")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_pages_of_other_sites_are_refused(running):
    status, answer = running.post("/predict", picture(1), **{"Sec-Fetch-Site": "cross-site"})
    assert status == 403 and answer["error"]
    _, headers, _ = running.ask(
        "POST", "/predict", picture(1), {"Origin": "http://evil.example", "Content-Type": "image/png"}
    )
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert running.ask("OPTIONS", "/predict")[0] == 405


def test_an_internal_error_is_logged_and_not_shown_to_the_client(capfd):
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


def test_a_missing_figure_has_a_reason():
    with Running(absent={"attention": "it is exported"}) as running:
        assert running.post("/attention", picture(1)) == (404, {"error": "it is exported"})
        assert running.post("/reconstruct", picture(1)) == (
            404,
            {"error": "this service has no /reconstruct"},
        )
        health = json.loads(running.ask("GET", "/health")[2])
        assert health["attention"] is False and health["reconstruct"] is False


# ---- when there is too much


def test_a_full_queue():
    classifier = Greys()
    limits = Limits(queue=3, images=2)
    with (
        Running(classifier=classifier, limits=limits) as running,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        with classifier.busy(running) as first:
            second = pool.submit(running.files, "/predict", ("a", picture(2)), ("b", picture(3)))
            running.wait_for(lambda: len(running.service.batches) == 2)
            assert running.metric("mae_queue_images")[""] == 3
            status, headers, content = running.ask(
                "POST", "/predict", picture(1), {"Content-Type": "image/png"}
            )
            assert status == 503 and headers["Retry-After"] == "1" and json.loads(content)["error"]
        assert first.result(5)[0] == second.result(5)[0] == 200
        assert running.post("/predict", picture(1))[0] == 200 and running.metric("mae_queue_images")[""] == 0


def test_bodies_have_a_memory_limit():
    # Room for eight bodies of the largest size.
    with Running(limits=Limits(body=100_000, timeout=5.0)) as running, contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000\r\n\r\n" + b"x" * 98_999
            )
        running.wait_for(lambda: running.service.bytes.taken == 8 * 98_999)
        assert running.post("/predict", picture(1) + bytes(20_000))[0] == 503
        assert running.post("/predict", picture(1))[0] == 200  # a small one finds room


def test_an_answer_has_a_timeout():
    classifier = Greys()
    with Running(classifier=classifier, limits=Limits(timeout=0.3)) as running:
        with classifier.busy(running) as first:
            started = time.monotonic()
            status, answer = running.post("/predict", picture(5))
            assert status == 504 and "0.3 s" in answer["error"] and time.monotonic() - started < 2
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
                while part := client.recv(2**16):
                    parts.append(part)
                    if b"}" in part:
                        break
                return b"".join(parts), time.monotonic() - started

        answer, seconds = said(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        assert answer.startswith(b"HTTP/1.1 408") and b"0.4 s" in answer and seconds < 3
        answer, seconds = said(b"POST /predict HTTP/1.1\r\nHost: loc")  # not even a whole head
        assert answer == b"" and seconds < 3


def test_work_of_a_closed_connection_is_dropped():
    classifier = Greys()
    with Running(classifier=classifier) as running:
        with classifier.busy(running):
            client = socket.create_connection(("127.0.0.1", running.port), timeout=5)
            body = picture(77)
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % len(body) + body)
            running.wait_for(lambda: len(running.service.batches) == 1)
            client.close()
            running.wait_for(lambda: len(running.service.batches) == 0)
            assert running.service.images.taken == 1
        assert running.post("/predict", picture(1))[0] == 200
        assert classifier.batches == [1, 1]
        assert running.metric("mae_requests_total")['route="/predict",status="499"'] == 1


def test_half_bodies_and_malformed_requests_leave_nothing_behind(capfd, caplog):
    with Running() as running:
        for rest in (
            b"Content-Length: 1000\r\n\r\nx",
            b"Transfer-Encoding: chunked\r\n\r\n9\r\nx",
            b"Content-Type: multipart/form-data; boundary=next\r\nContent-Length: 1000\r\n\r\n--next\r\n",
        ):
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


def test_running_work_is_finished_at_shutdown():
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


def test_shutdown_does_not_wait_for_slow_clients():
    with (
        Running(grace=0.2) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=5) as client,
    ):
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        running.wait_for(lambda: running.service.images.taken == 1)
        running.end()
        running.thread.join(4)
        assert not running.thread.is_alive()


# ---- what it tells about itself


def test_health_and_metrics():
    with Running(about={"engine": "none"}) as running:
        for _ in range(3):
            running.post("/predict", picture(1))
        running.files("/predict", ("a", picture(1)), ("b", b"hello"))
        running.post("/predict", b"hello")
        running.ask("GET", "/nowhere")
        health = json.loads(running.ask("GET", "/health")[2])
        assert 0 <= health.pop("uptime_s") < 60
        assert health == {
            "status": "ok",
            "model": "greys",
            "classes": K,
            "engine": "none",
            "queue": 0,
            "attention": False,
            "reconstruct": False,
        }
        assert running.metric("mae_requests_total") == {
            'route="/predict",status="200"': 4,
            'route="/predict",status="415"': 1,
            'route="other",status="404"': 1,
            'route="/health",status="200"': 1,
        }
        assert running.metric("mae_request_seconds_count")['route="/predict"'] == 5
        assert running.metric("mae_images_total") == {"": 6}
        assert running.metric("mae_images_unreadable_total") == {"": 2}
        assert running.metric("process_resident_memory_bytes")[""] > 10**7
    assert [line.split()[1:4] for line in running.lines[3:6]] == [
        ["POST", "/predict", "200"],
        ["POST", "/predict", "415"],
        ["GET", "/nowhere", "404"],
    ]


def test_a_port_in_use():
    with contextlib.closing(open_socket("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert url_of(listening) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ValueError, match=f"--port {port}: .*in use"):
            open_socket("127.0.0.1", port)
    with pytest.raises(ValueError, match="--host no.such.host.invalid"):
        open_socket("no.such.host.invalid", 8000)
    with pytest.raises(ValueError, match="--port 70000"):
        open_socket("127.0.0.1", 70000)


@pytest.mark.filterwarnings(
    "ignore::aiohttp.BadContentDispositionHeader", "ignore::aiohttp.BadContentDispositionParam"
)
def test_damaged_multipart_bodies_are_client_errors(running):
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
    with Running(topk=3, figures={"attention": Panels(), "reconstruct": Panels()}) as running:
        with browser.page(f"http://127.0.0.1:{running.port}/", width=390) as page:
            page.wait_for("document.querySelector('#model').textContent.startsWith('greys, 256 classes')")
            assert not page.evaluate("document.querySelector('#controls').hidden")
            page.choose_file("#choose", tmp_path / "<i>boot.png")
            page.wait_for(
                "document.querySelectorAll('#classes li').length == 3 && document.images.length == 5"
            )
            lines = page.evaluate("[...document.querySelectorAll('#classes li')].map(line => line.innerText)")
            assert [line.split() for line in lines] == [
                ["grey", "<200>", "75.0%"],
                ["grey", "<201>", "12.5%"],
                ["grey", "<202>", "12.5%"],
            ]
            width = "document.querySelector('{}').getBoundingClientRect().width"
            share = page.evaluate(f"{width.format('.track div')} / {width.format('.track')}")
            assert share == pytest.approx(0.75, abs=0.01)
            heading = "document.querySelector('#reconstruct .heading').textContent"
            assert page.evaluate(heading) == (
                "<b>[('mask_ratio', 0.75), ('name', '<i>boot.png'), ('seed', 0)]</b>"
            )
            # While the slider moves, only its last position is requested.
            page.evaluate(
                "for (const value of [50, 40, 30]) { const ratio = "
                "document.querySelector('#ratio'); ratio.value = value; ratio.dispatchEvent(new "
                "Event('input')); }"
            )
            page.wait_for(f"{heading}.includes('0.3)')")
            assert page.evaluate("document.querySelector('#share').textContent") == "30%"
            asked = [re.sub(".*/", "", address) for address in page.requests if "reconstruct" in address]
            assert asked == ["reconstruct?mask_ratio=0.75&seed=0", "reconstruct?mask_ratio=0.3&seed=0"]
            # A newer request aborts the running one.
            move = (
                "document.querySelector('#ratio').value = {}; "
                "document.querySelector('#ratio').dispatchEvent(new Event('input'))"
            )
            page.evaluate(move.format(20))
            running.wait_for(lambda: running.service.images.taken)
            page.evaluate(move.format(90))
            page.wait_for(f"{heading}.includes('0.9)')")
            assert running.metric("mae_requests_total")['route="/reconstruct",status="499"'] == 1
            page.evaluate("document.querySelector('#language').click()")
            assert page.evaluate("document.querySelector('h1').innerText") == "模型看到了什么？"
            assert {"可见部分", "掩码 75%"} <= set(page.text().splitlines()) and not page.overflows()
            assert page.evaluate("document.querySelectorAll('main i, main b').length") == 0
            # A dropped file that is no picture.
            page.evaluate("""(() => { const data = new DataTransfer();
                              data.items.add(new File(["hello"], "x.png", {type: "image/png"}));
                              dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
                            })()""")
            page.wait_for(
                "document.querySelector('#classes-state').textContent"
                ".startsWith('不支持的文件格式：x.png: not')"
            )
            assert page.evaluate("document.querySelectorAll('#classes li').length") == 0
            own = f"http://127.0.0.1:{running.port}/"
            assert all(address.startswith((own, "blob:", "data:")) for address in page.requests)
            assert not page.complaints


def test_the_security_policy_of_the_page(running):
    _, headers, content = running.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Content-Type"].startswith("text/html")
    assert b"http" not in content and b"innerHTML" not in content
