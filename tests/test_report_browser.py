"""The page in a browser: nothing leaves, no errors, no sideways scrolling, and marks that answer to the keyboard."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, write_run

from pysoup.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# What a reader does, and what comes of it, told to the frame around the page.
SCRIPT = """
<script>
addEventListener("load", () => {
  const found = {};
  const marks = [...document.querySelectorAll("#figure .mark")];
  const tip = document.getElementById("tip");
  marks[0].focus();
  found.first = tip.hidden ? "" : tip.textContent;
  marks[0].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  found.second = tip.hidden ? "" : tip.textContent;
  found.moved = document.activeElement === marks[1];
  const box = tip.getBoundingClientRect();
  found.inside = box.left >= 0 && box.right <= innerWidth;
  found.stops = marks.filter((mark) => mark.getAttribute("tabindex") === "0").length;
  marks[1].dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
  found.closed = tip.hidden;
  marks[2].dispatchEvent(new MouseEvent("mouseenter"));
  found.hovered = tip.hidden ? "" : tip.textContent;
  found.width = innerWidth;
  found.scrolls = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.ink = getComputedStyle(document.body).color;
  dispatchEvent(new Event("beforeprint"));
  found.closedDetails = document.querySelectorAll("details:not([open])").length;
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
FRAME = """<!DOCTYPE html><title></title>
<script>addEventListener("message", (event) => { document.title = "found" + event.data + "end"; });</script>
<iframe src="read.html" width="WIDTH" height="900" style="border: 0"></iframe>
"""
"""No window is as narrow as a phone."""


@dataclass
class Visit:
    dom: str
    console: list[str]
    requests: list[str]
    """The first line of each request that left, but for those of the browser itself."""


# What a browser asks whatever it shows.
OWN = re.compile(
    r"(?:CONNECT |\w+ http://)(update\.googleapis|clients2\.google|redirector\.gvt1|accounts\.google)\.com[:/]"
)


class _Proxy:
    """Takes every connection that the browser makes, notes what it asks for and hangs up."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                with suppress(OSError):
                    line = connection.recv(4096).split(b"\r\n")[0].decode(errors="replace")
                    self.requests += [] if OWN.match(line) else [line]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def visit(page: Path, tmp_path: Path, *options: str) -> Visit:
    """Open ``page`` in headless Chromium, all connections through a proxy."""
    proxy = _Proxy()
    try:
        done = subprocess.run(
            [
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--proxy-server=127.0.0.1:{proxy.port}",
                "--enable-logging=stderr",
                "--virtual-time-budget=2000",
                "--dump-dom",
                *options,
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        proxy.close()
    return Visit(done.stdout, re.findall(r"CONSOLE.*", done.stderr), proxy.requests)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", [*HOSTILE, *(f"sweep/model_{i:02d}.safetensors" for i in range(4))])
    write_report(tmp_path / "run", tmp_path / "report.html")
    return tmp_path / "report.html"


def with_reader(page: Path, width: int = 1280) -> Path:
    """The page, so wide, with a reader in it, which its policy would not let run."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    page.with_name("read.html").write_text(text.replace("</body>", f"{SCRIPT}</body>"), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    return frame


def told(found: Visit) -> dict[str, Any]:
    """What the reader saw."""
    match = re.search(r"<title>found(.*)end</title>", found.dom)
    assert match is not None, found.console
    return json.loads(unescape(match[1]))


def test_nothing_leaves_and_nothing_goes_wrong(page: Path, tmp_path: Path) -> None:
    found = visit(page, tmp_path)
    assert "Best individual model" in found.dom
    assert 'id="tip"' in found.dom  # the page's own script ran under its own policy
    assert found.console == []
    assert found.requests == []


def test_a_page_that_loads_and_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://evil.example/x.png'><script>nothing()</script>")
    found = visit(page, tmp_path)
    assert any("evil.example" in line for line in found.requests)
    assert any("nothing is not defined" in line for line in found.console)


@pytest.mark.parametrize("width", [390, 1280])
def test_marks_answer_to_keyboard_and_pointer_and_nothing_scrolls_sideways(
    width: int, page: Path, tmp_path: Path
) -> None:
    found = visit(with_reader(page, width), tmp_path)
    seen = told(found)
    assert seen["width"] == width
    assert seen["scrolls"] <= 0
    assert "learning_rate0.001" in seen["first"]
    assert "learning_rate0.002" in seen["second"]
    assert "learning_rate0.003" in seen["hovered"]
    assert (seen["moved"], seen["inside"], seen["closed"], seen["stops"]) == (True, True, True, 1)
    assert seen["closedDetails"] == 0  # printed pages have all of it
    assert found.console == []


def test_dark_pages_are_dark_and_light_ones_light(page: Path, tmp_path: Path) -> None:
    dark = told(visit(with_reader(page), tmp_path, "--blink-settings=preferredColorScheme=0"))
    light = told(visit(with_reader(page), tmp_path, "--blink-settings=preferredColorScheme=1"))
    assert (dark["ink"], light["ink"]) == ("rgb(236, 236, 236)", "rgb(26, 26, 26)")


@pytest.mark.parametrize("width", [500, 1280])
def test_a_picture_can_be_taken(width: int, page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "shot.png"
    visit(page, tmp_path, f"--window-size={width},900", f"--screenshot={picture}")
    assert picture.stat().st_size > 10_000
