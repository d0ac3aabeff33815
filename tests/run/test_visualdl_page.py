"""What `visualdl --logdir ... --language en` shows of a run, in a real browser."""
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

from util.run import visualdl_writer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not browser.available(), reason="no Chromium")]


@contextlib.contextmanager
def visualdl(logdir, *flags):
    """The address of a VisualDL server, as the documented command starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("visualdl"), "--logdir", logdir, "--host", "127.0.0.1", "--port",
               str(port), "--disable-telemetry", *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(150):
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/alive").close()
                    break
                time.sleep(0.2)
            else:
                pytest.fail("VisualDL does not answer")
            yield f"http://127.0.0.1:{port}/app"
        finally:
            server.kill()


def write_run(folder):
    """Points of a run that was interrupted, and a red and green picture."""
    writer = visualdl_writer.open_writer(folder)
    for step in range(15):
        writer.add_scalar("train_loss", 1 / (1 + step), visualdl_writer.thousandth(0, step / 10))
    writer.close()
    writer = visualdl_writer.open_writer(folder, place=(1, 0.0))
    for step in range(10, 20):
        writer.add_scalar("train_loss", 1 / (1 + step), visualdl_writer.thousandth(0, step / 10))
    writer.add_scalar("watched/attention_entropy", 2.0, 1)
    halves = np.zeros([100, 200, 3], "uint8")
    halves[:, :100, 0] = halves[:, 100:, 1] = 255
    writer.add_image("reconstructions", halves, 1)
    writer.close()


def look(page, folder):
    """[height, width, 3] of what can be seen."""
    page.screenshot(folder / "seen.png")
    return np.asarray(Image.open(folder / "seen.png").convert("RGB")).astype(int)


def test_scalars_and_images_are_seen(tmp_path):
    write_run(tmp_path / "run")
    with visualdl(tmp_path, "--language", "en") as address:
        # Of a browser that asks for neither English nor Chinese: without --language this is an error 500.
        asked = urllib.request.Request(f"{address}/index", headers={"Accept-Language": "de-DE,de;q=0.9"})
        with urllib.request.urlopen(asked) as answer:
            assert answer.status == 200

        with browser.page(f"{address}/scalar", width=1280, height=900) as page:
            page.wait_for("document.body.innerText.includes('train_loss')")
            assert "watched" in page.text()  # VisualDL opens the first group alone
            for _ in range(40):  # charts are drawn bit by bit
                seen = look(page, tmp_path)[150:, :1000]  # below the head, left of the settings
                blue = (seen[..., 2] > 180) & (seen[..., :2].max(axis=-1) < 80)
                if blue[:, :400].sum() > 200 and blue.any(axis=1).sum() > 50:
                    break
                time.sleep(0.25)
            else:
                pytest.fail("no curves are seen")
            assert not page.complaints

        with browser.page(f"{address}/sample/image", width=1280, height=900) as page:
            page.wait_for("[...document.images].some(image => image.naturalWidth == 200)")
            page.wait_for("document.body.innerText.includes('reconstructions')")
            seen = look(page, tmp_path)
            for channel in (0, 1):
                others = [other for other in range(3) if other != channel]
                assert ((seen[..., channel] > 200) & (seen[..., others].max(axis=-1) < 60)).sum() > 2000


def test_no_point_is_seen_twice(tmp_path):
    """In what the page gets from the server."""
    write_run(tmp_path / "run")
    with visualdl(tmp_path, "--language", "zh") as address:
        query = f"{address}/api/scalar/list?run={tmp_path / 'run'}&tag=train_loss"
        with urllib.request.urlopen(query) as answer:
            points = json.load(answer)["data"]
    assert [step for _, step, _ in points] == list(range(0, 2000, 100))
