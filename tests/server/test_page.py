"""The page, in a real browser: type and see, sliders, compare, recipes, the server gone; nothing leaves the machine."""

import io
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import fewstep
from fewstep.images import encoded
from fewstep.server.app import new_app
from fewstep.server.running import bound
from tests.server.conftest import config, image_of, png, serving, until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 60_000
PICTURE = ".stage img"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if BROWSER is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, with its first picture. A complaint in its console and a request to elsewhere fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    places: set[str] = set()
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: places.add(urlsplit(request.url).netloc))
    page.goto(address)
    page.locator(PICTURE).wait_for()
    yield page
    context.close()
    assert complaints == []
    assert places <= {urlsplit(address).netloc, ""}


def source(page: Page, number: int = 0) -> str:
    """The picture that is shown."""
    return page.locator(PICTURE).nth(number).get_attribute("src") or ""


def changed(page: Page, old: str) -> str:
    """The next picture that is shown."""
    expect(page.locator(PICTURE).first).not_to_have_attribute("src", old, timeout=PATIENCE_MS)
    return source(page)


def test_a_picture_follows_what_is_typed(page: Page) -> None:
    first = source(page)
    page.get_by_label("Prompt").fill("a green dragon")
    expect(page.locator(PICTURE)).to_have_attribute("alt", "a green dragon", timeout=PATIENCE_MS)
    assert source(page) != first


def test_sliders_change_the_picture_and_back(page: Page) -> None:
    first = source(page)
    slider = page.get_by_label("high-contrast")
    slider.fill("0.8")
    second = changed(page, first)
    slider.fill("0")
    third = changed(page, second)
    assert third.split(",")[0] == first.split(",")[0]
    page.get_by_label("Steps").fill("2")
    changed(page, third)


def test_compare_shows_many_steps_beside_few_with_times(page: Page) -> None:
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(PICTURE)).to_have_count(2, timeout=PATIENCE_MS)
    expect(page.locator("figcaption").nth(1)).to_contain_text(re.compile(r"DDIM, 32 steps, [\d.]+ times as long"))
    assert source(page, 0) != source(page, 1)


def test_a_kept_picture_survives_reload_and_gives_its_command(page: Page) -> None:
    page.get_by_label("Prompt").fill("a castle")
    expect(page.locator(PICTURE)).to_have_attribute("alt", "a castle", timeout=PATIENCE_MS)
    page.get_by_label("Prompt").press("Enter")
    page.locator(".gallery img").wait_for()
    page.reload()
    page.locator(".gallery button").click()
    page.get_by_role("button", name="Copy as command").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    typed = page.evaluate("() => navigator.clipboard.readText()")
    assert typed.startswith("fewstep sample 'a castle' --lora lcm:1 --steps 4")
    page.get_by_role("button", name="Copy as Python").click()
    code = page.evaluate("() => navigator.clipboard.readText()")
    compile(code, "copied", "exec")
    assert 'session.draw("a castle", steps=4' in code


def test_enter_keeps_the_picture_of_what_is_typed_though_it_is_not_drawn_yet(page: Page) -> None:
    page.get_by_label("Prompt").fill("a green dragon")
    page.get_by_label("Prompt").press("Enter")
    kept = page.locator(".gallery img")
    kept.wait_for()
    assert [one.get_attribute("alt") for one in kept.all()] == ["a green dragon"]


def test_a_picture_drawn_from_another_gives_a_command_that_names_it(page: Page) -> None:
    page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as from another machine
    page.evaluate("() => addEventListener('copy', () => (window.typed = getSelection().toString()))")
    drop(page, png())
    page.get_by_role("button", name="Keep").click()
    page.locator(".gallery button").click()
    page.get_by_role("button", name="Copy as command").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert "--strength 0.6 --image START.png" in page.evaluate("() => window.typed")


def test_settings_without_a_start_picture_remove_the_one_that_is_there(page: Page) -> None:
    page.get_by_role("button", name="Keep").click()
    drop(page, png())
    page.locator("img.start").wait_for()
    page.locator(".gallery button").click()
    page.get_by_role("button", name="Use its settings").click()
    expect(page.locator("img.start")).to_have_count(0)


def test_what_the_page_lacks_of_a_dropped_picture_is_said(page: Page) -> None:
    (picture,) = fewstep.sample("a fox", steps=1, dtype="fp32", device="cpu")
    papercut = {**picture.recipe["lora"][0], "file": "papercut"}
    recipe = {**picture.recipe, "model": "my-model", "lora": [papercut], "steps": 101}
    drop(page, encoded(picture.image, "png", recipe))
    expect(page.get_by_role("alert")).to_have_text(
        "This page cannot draw that picture again. It lacks the model my-model, the LoRA papercut, 101 steps."
    )
    page.get_by_label("Prompt").fill("a boat")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_picture_of_many_steps_and_another_solver_is_drawn_again(page: Page) -> None:
    (picture,) = fewstep.sample("a fox", steps=12, solver="ddim", loras=(), dtype="fp32", device="cpu")
    first = source(page)
    drop(page, encoded(picture.image, "png", dict(picture.recipe)))
    shown = image_of(changed(page, first).partition(",")[2])
    assert shown.tobytes() == picture.image.tobytes()
    assert page.get_by_label("Solver").input_value() == "ddim"


def test_steps_are_few_with_an_acceleration_and_many_without(page: Page) -> None:
    steps = page.get_by_label("Steps")
    assert steps.get_attribute("max") == "8"
    page.get_by_role("slider", name="lcm").fill("0")
    expect(steps).to_have_attribute("max", "50")
    steps.fill("10")
    page.get_by_role("slider", name="lcm").fill("1")
    expect(steps).to_have_attribute("max", "10")


def test_a_model_is_offered_the_loras_that_fit_it(browser: Browser, tiny_model_folder: Path) -> None:
    with serving(models=(str(tiny_model_folder),)) as address:
        page = browser.new_page()
        page.goto(address)
        page.locator(PICTURE).wait_for(timeout=PATIENCE_MS)
        first = source(page)
        page.get_by_label("Model").select_option(tiny_model_folder.name)
        expect(page.get_by_role("slider", name="lcm")).to_have_count(0)
        expect(page.get_by_text("This server offers none for this model.")).to_be_visible()
        changed(page, first)
        expect(page.get_by_role("alert")).to_have_count(0)
        page.get_by_label("Model").select_option("emoji")
        expect(page.get_by_role("slider", name="lcm")).to_have_value("1")
        page.close()


def test_the_model_of_an_earlier_server_is_not_asked_for(page: Page) -> None:
    page.evaluate("() => localStorage.setItem('fewstep-settings', JSON.stringify({model: 'gone', prompt: 'a boat'}))")
    page.reload()
    expect(page.locator(PICTURE)).to_have_attribute("alt", "a boat", timeout=PATIENCE_MS)


def test_a_frame_has_the_shape_of_its_picture(page: Page) -> None:
    first = source(page)
    page.get_by_label("Width").fill("256")
    page.get_by_label("Width").press("Tab")
    changed(page, first)
    box = page.locator(".frame").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(2, rel=0.05)


def test_a_dropped_picture_loads_its_recipe(page: Page, http, tmp_path: Path) -> None:
    body = {"prompts": ["a blue whale"], "seed": 5, "steps": 2, "loras": ["lcm:1", "noto-mono:0.5"]}
    file = http.post("/v1/sample", json=body, headers={"accept": "image/png"}).content
    drop(page, file)
    expect(page.get_by_label("Prompt")).to_have_value("a blue whale")
    assert page.get_by_label("Seed").input_value() == "5"
    assert page.get_by_label("Steps").input_value() == "2"
    assert page.get_by_label("noto-mono").input_value() == "0.5"
    expect(page.locator(PICTURE)).to_have_attribute("alt", "a blue whale", timeout=PATIENCE_MS)
    shown = image_of(source(page).partition(",")[2])
    assert shown.tobytes() == Image.open(io.BytesIO(file)).tobytes()
    drop(page, png())  # which has none: it is one to start from
    expect(page.locator("img.start")).to_be_visible()
    expect(page.get_by_label("Strength")).to_be_visible()


def drop(page: Page, file: bytes) -> None:
    """Let a file fall onto the page."""
    page.evaluate(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
            document.querySelector('main').dispatchEvent(
                new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        list(file),
    )


def test_a_sketch_is_drawn_from(page: Page) -> None:
    first = source(page)
    page.get_by_role("button", name="Sketch").click()
    box = page.locator("canvas").bounding_box()
    around = page.locator("fieldset", has=page.locator("canvas")).bounding_box()
    assert box is not None
    assert around is not None
    assert box["x"] + box["width"] < around["x"] + around["width"]
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 90, steps=5)
    page.mouse.up()
    changed(page, first)
    expect(page.get_by_label("Strength")).to_be_visible()


def test_it_fits_a_phone_and_both_themes(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    grounds = set()
    for _ in range(2):
        page.get_by_role("button", name="Light or dark").click()
        grounds.add(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_a_key_is_asked_for_until_it_is_the_right_one(browser: Browser) -> None:
    with serving(api_key="secret") as address:
        page = browser.new_page()
        page.goto(address)
        for key in ("wrong", "secret"):
            page.get_by_label("This server asks for a key").fill(key)
            page.get_by_role("button", name="Go on").click()
            if key == "wrong":
                expect(page.get_by_role("alert")).to_have_text("The server does not take this key.")
        page.locator(PICTURE).wait_for(timeout=PATIENCE_MS)
        page.close()


def test_a_server_that_is_gone_is_said_and_a_wrong_value_too(browser: Browser) -> None:
    listening = bound("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(new_app(config()), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"http://127.0.0.1:{port}")
    page.locator(PICTURE).wait_for()
    page.get_by_label("Width").fill("30")
    page.get_by_label("Width").press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("not a multiple of 8", timeout=PATIENCE_MS)
    page.get_by_label("Width").fill("")
    page.get_by_label("Width").press("Tab")
    expect(page.get_by_role("alert")).to_have_count(0, timeout=PATIENCE_MS)
    server.should_exit = True
    thread.join(30)
    listening.close()
    page.get_by_label("Prompt").fill("a boat")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer", timeout=PATIENCE_MS)
    page.close()
