"""Write docs/pictures/page.jpg, the page of `fewstep serve`: `python -m studies.serving_picture`. It needs Chromium."""

import shutil
import threading
import time

import uvicorn
from playwright.sync_api import sync_playwright

from fewstep.configs import ServeConfig, build
from fewstep.server.app import new_app
from fewstep.server.running import bound
from studies.pages import DOCS

PROMPTS = ("a happy robot", "a red apple", "a castle", "a green dragon")  # the last is the one that is shown
WIDTH, HEIGHT = 1180, 820
QUALITY = 82
PATIENCE_S = 120


def main() -> None:
    """Serve the embedded model, keep a few pictures, and take the picture of the page."""
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(new_app(build(ServeConfig)), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.1)
        try:
            take(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


def take(address: str) -> None:
    """Take the picture of the page at that address."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(address)
        for prompt in PROMPTS:
            page.get_by_label("Prompt").fill(prompt)
            page.locator(f".stage img[alt='{prompt}']").wait_for()
            page.get_by_label("Prompt").press("Enter")
            page.locator(f".gallery img[alt='{prompt}']").wait_for()
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("times as long").wait_for()
        page.screenshot(path=DOCS / "pictures" / "page.jpg", type="jpeg", quality=QUALITY)
        browser.close()


if __name__ == "__main__":
    main()
