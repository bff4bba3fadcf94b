"""The browser that other tests look through sees what scripts do, and what they complain of."""

import pytest

from tests import browser

pytestmark = browser.needed

PAGE = """<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,"><p id="p"></p><script>
console.log("two\\nlines"); console.error("so: \\"bad\\", source: x");
setTimeout(() => {{
  document.getElementById("p").textContent =
    `${{innerWidth}} ${{matchMedia("(prefers-color-scheme: dark)").matches}}`;
  throw new Error("late");
}}, 3000);
</script>"""


@pytest.fixture
def page(tmp_path):
    """Write the page under a policy, and open it."""

    def open_(policy, **options):
        path = tmp_path / "ü <page>.html"
        path.write_text(PAGE.format(policy=policy))
        return browser.open_page(path.as_uri(), tmp_path, **options)

    return open_


def test_scripts_run_and_what_they_say_is_heard(page, tmp_path):
    picture = tmp_path / "page.png"
    light = page("", screenshot=picture, size=(800, 600))
    assert "800 false" in light.dom
    first, second, third = light.console
    assert first.startswith("two\nlines") and second.startswith('so: "bad", source: x')
    assert third.startswith("Uncaught Error: late")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "800 true" in page("", size=(800, 600), dark=True).dom


def test_what_a_policy_blocks_is_heard(page):
    blocked = page("script-src 'none'")
    assert "800 " not in blocked.dom
    assert any("Content Security Policy" in line for line in blocked.console)
