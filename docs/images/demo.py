"""Take the picture docs/images/demo.png: two visitors in the demo room of a running server (`make run`).

    .venv/bin/python docs/images/demo.py http://127.0.0.1:8000/

Needs Chromium and the packages of `make test`. Compresses the picture with pngquant if it is installed.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

PICTURE = Path(__file__).with_name("demo.png")
WINDOW: ViewportSize = {"width": 660, "height": 640}
SCALE = 1.5  # sharp on a high-density screen, in a small file
MOST_BYTES = 300_000  # so that the README loads quickly

BOTH = """<!doctype html><style>
body { margin: 0; padding: 24px; display: inline-flex; gap: 24px; background: #d8d2c6 }
img { width: 660px; border-radius: 10px; box-shadow: 0 6px 24px #0004 }
</style><img src="data:image/png;base64,%s"><img src="data:image/png;base64,%s">"""


def main(address: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        first, second = visitor(browser, address), visitor(browser, address)
        say(first, "Is the new build out?")
        say(second, "Yes, since a minute ago.")
        say(first, "Great, no more refreshing the page.")
        second.locator("#messages li").nth(2).wait_for()
        second.locator("#text").press_sequentially("Good, I will te")
        first.locator("#typing", has_text="is typing").wait_for()
        shots = [base64.b64encode(page.screenshot()).decode() for page in (first, second)]
        both = browser.new_page(viewport={"width": 1400, "height": 700}, device_scale_factor=SCALE)
        both.set_content(BOTH % tuple(shots))
        both.locator("body").screenshot(path=PICTURE)
        browser.close()
    shrink()
    size = PICTURE.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{PICTURE.name} has {size} bytes; {MOST_BYTES} are allowed")


def visitor(browser: Browser, address: str) -> Page:
    page = browser.new_page(viewport=WINDOW, device_scale_factor=SCALE, color_scheme="light", reduced_motion="reduce")
    page.goto(f"{address.rstrip('/')}/demo/")
    page.locator("#text:enabled").wait_for()
    return page


def say(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#send").click()
    page.locator("#messages", has_text=text).wait_for()


def shrink() -> None:
    pngquant = shutil.which("pngquant")
    if pngquant:
        subprocess.run([pngquant, "--force", "--skip-if-larger", "--output", PICTURE, PICTURE], check=False)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/")
