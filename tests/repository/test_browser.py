"""The browser that other tests look through: if it did not show what is there, they would prove nothing."""

import browser
import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not browser.available(), reason="no Chromium")]

PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>body { margin: 0; background: rgb(250, 240, 230) } div { height: 1500px; width: WIDTH }
@media (prefers-color-scheme: dark) { body { background: rgb(10, 20, 30) } }</style>
<div>类别 <b></b></div><script>document.querySelector("b").textContent = "made by a script"</script>
<img src="nowhere.png"><script>undefined_function()</script>"""


@pytest.mark.parametrize("dark, width, colour", [(False, 390, (250, 240, 230)), (True, 1280, (10, 20, 30))])
def test_what_a_page_shows(tmp_path, dark, width, colour):
    file = tmp_path / "a page.html"
    file.write_text(PAGE.replace("WIDTH", "600px"), encoding="utf-8")
    with browser.page(file, width=width, height=700, dark=dark) as page:
        assert page.evaluate("document.documentElement.clientWidth") == width
        assert page.overflows() == (width < 600)
        assert "类别 made by a script" in page.text() and "<b>made by a script</b>" in page.html()
        assert [url.rpartition("/")[2] for url in page.requests] == ["a%20page.html", "nowhere.png"]
        assert ["undefined_function" in complaint for complaint in page.complaints] == [True]
        with pytest.raises(ValueError, match="nothing_of_that_name"):
            page.evaluate("nothing_of_that_name.x")
        page.screenshot(tmp_path / "seen.png")
        page.screenshot(tmp_path / "whole.png", whole=True)
    with Image.open(tmp_path / "seen.png") as seen, Image.open(tmp_path / "whole.png") as whole:
        assert seen.width == width and seen.height == 700 and whole.height >= 1500
        assert (np.array(seen.convert("RGB"))[-1, -1] == colour).all()
