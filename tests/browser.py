"""A headless Chromium for tests of pages: what scripts made of one, and what they complained of.

pytestmark = browser.needed  # skips where there is none
page = browser.open_page(url, tmp_path)
assert page.console == [] and "…" in page.dom
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BINARY = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(BINARY is None, reason=f"none of {', '.join(NAMES)} is installed")

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--enable-logging=stderr", "--disable-background-networking", "--disable-sync"),
    # Whatever a page asks of another machine fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
# [process:thread:date:INFO:CONSOLE:line] "text", source: URL (line); the text may have many lines.
_SAID = re.compile(
    r'^\[[^\]\n]*CONSOLE[^\]\n]*\] "(.*?)", source: (\S* \(\d+\))$', re.DOTALL | re.M
)


class Page(NamedTuple):
    """A page after its scripts ran."""

    dom: str  # as HTML
    console: list[str]  # "text (source)" of messages, errors and what a policy blocked


def open_page(
    url: str,
    tmp_path: Path,
    screenshot: Path | None = None,
    size: tuple[int, int] = (1280, 900),
    *,
    dark: bool = False,
    milliseconds: int = 5_000,
) -> Page:
    """Open `url` and let its scripts run.

    Args:
      url: http://…, or file://… (`Path.as_uri()`).
      tmp_path: where the browser may keep what it likes.
      screenshot: a PNG to write.
      size: of the window, in pixels; no narrower than 500 (a minimum of Chromium's).
      dark: whether the reader prefers a dark page.
      milliseconds: of the page's own clock: its timers fire at once, its requests are waited for.
    """
    assert BINARY is not None, "mark the test with browser.needed"
    width, height = size
    command = [BINARY, *_FLAGS, f"--window-size={width},{height}"]
    command += [f"--virtual-time-budget={milliseconds}", "--dump-dom"]
    command += [f"--user-data-dir={tempfile.mkdtemp(prefix='browser', dir=tmp_path)}"]
    command += ["--force-dark-mode"] if dark else []
    command += [f"--screenshot={screenshot}"] if screenshot else []
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    if screenshot:
        assert screenshot.is_file(), done.stderr[-2000:]
    said = [f"{text} ({source})" for text, source in _SAID.findall(done.stderr)]
    return Page(done.stdout, said)
