"""The report of an audit of splits as a browser shows it, without a network.

A copy of the page gets a script that counts what is drawn: the page itself has none.
"""

import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from PIL import Image

from audit.input.small_audits import HARMLESS, audit
from cloister.pages.page import STYLE
from cloister.plan.split_scores import ATTACKS

BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")

COUNTING = """<script>
addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("svg")].map(svg => ({
    title: svg.getAttribute("aria-label"),
    height: svg.getBoundingClientRect().height,
    lengths: [...svg.querySelectorAll("polyline")].map(line => line.getTotalLength()),
    dots: svg.querySelectorAll("circle").length,
  }));
  const pictures = [...document.images].map(one => ({
    said: one.alt, decoded: one.complete ? one.naturalWidth : 0,
    shown: one.getBoundingClientRect().width,
  }));
  const found = {
    drawn, pictures, title: document.title, online: performance.getEntriesByType("resource")
      .filter(one => !one.name.startsWith("data:")).map(one => one.name),
    wide: document.documentElement.scrollWidth - innerWidth,
  };
  document.body.dataset.found = JSON.stringify(found);
});
</script>"""
OFFLINE = ("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND")
DESK, PHONE = (1200, 2400), (500, 2400)
"""Windows; headless Chromium makes none that is narrower."""


def browse(folder, page, *options, size):
    """What Chromium writes when it opens a page in a new profile."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--virtual-time-budget=5000", f"--window-size={size[0]},{size[1]}",
        f"--user-data-dir={folder / 'profile'}", *OFFLINE, *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, check=True, timeout=300).stdout.decode()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return audit(folder, attacks=HARMLESS), folder


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_a_browser_draws_the_gallery_and_the_curves(report, tmp_path, size):
    made, folder = report
    text = (folder / "report.html").read_text()
    counting = tmp_path / "counting.html"
    counting.write_text(text.replace("</body>", COUNTING + "</body>"))
    dom = browse(tmp_path, counting, "--dump-dom", size=size)
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    assert found["online"] == []
    assert made.model in found["title"]
    # The gallery: originals, and what each attack made of them, at each split and control.
    places = len(made.splits) + 2
    assert len(found["pictures"]) == 8 * (1 + len(ATTACKS)) * places + 1
    assert {one["decoded"] for one in found["pictures"]} == {8}
    assert all(one["shown"] > 20 and one["said"] for one in found["pictures"])
    # The curves: each attack's line, an interval and a point at each split.
    assert [one["title"].split(",")[0] for one in found["drawn"]] == [
        "SSIM", "PSNR in dB", "Identification", "Explained share of the variance",
    ]  # fmt: skip
    for one in found["drawn"]:
        assert one["height"] > 100
        assert one["dots"] == len(ATTACKS) * (len(made.splits) + 1)
        assert sum(length > 150 for length in one["lengths"]) >= 5 + 1 + len(ATTACKS)
    assert found["wide"] <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_a_page_in_light_and_dark(report, tmp_path, scheme):
    picture = tmp_path / "page.png"
    options = [f"--screenshot={picture}"]
    if scheme == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    browse(tmp_path, report[1] / "report.html", *options, size=DESK)
    pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"), np.int64)
    corner = pixels[2, 2]
    assert (corner.mean() > 200) == (scheme == "light")
    drawn = np.abs(pixels - corner).sum(axis=2) > 60
    assert 0.01 < drawn.mean() < 0.5
    # The points of the four attacks have colours that nothing else has.
    shown = {"#" + bytes(one).hex() for one in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    lines = re.findall(r"--line-\d: (#[0-9a-f]{6})", STYLE)
    light, dark = lines[: len(ATTACKS)], lines[len(ATTACKS) :]
    assert set(light if scheme == "light" else dark) <= shown
    assert shown.isdisjoint(dark if scheme == "light" else light)
