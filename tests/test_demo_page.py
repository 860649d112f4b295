"""The demo's page in a real browser: a headless Chromium over a tiny model and a folder, as a visitor clicks."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from samples import png, wav

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("a red circle", "a blue square", "a dog runs")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason='needs gradio: pip install -e ".[demo]"')
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if Path(own).exists() else next(filter(None, map(shutil.which, CHROMIUM)), None)
        if path is None:
            pytest.skip("needs a Chromium: playwright install chromium, or a package of the system")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for number in range(4):
        (folder / f"photo-{number}.png").write_bytes(png(rng))
        (folder / f"sound-{number}.wav").write_bytes(wav(rng))
    (folder / "notes.txt").write_text("\n".join(TEXTS))
    return folder


@pytest.fixture(scope="module")
def address(browser, checkpoint, files, tmp_path_factory):
    """Where `python demo/app.py MODEL --data FOLDER` runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(ROOT / "demo" / "app.py"), str(checkpoint)]
    aside = tmp_path_factory.mktemp("aside")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(aside)}
    with subprocess.Popen(
        [*command, "--data", str(files), "--port", str(port)], cwd=checkpoint, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as app:  # fmt: skip
        late = threading.Timer(240, app.kill)
        late.start()
        try:
            printed = []
            for line in app.stdout:
                printed.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            assert printed and found, "".join(printed)[-3000:]
            late.cancel()
            yield found[0]
        finally:
            late.cancel()
            app.terminate()
            try:
                app.wait(30)
            finally:
                app.kill()
    assert not list(aside.glob("cue-demo-*")), "what the page showed stays behind"


@pytest.fixture
def page(browser, address):
    """The page, freshly opened; it may ask nobody but its own server, and nothing of it may fail."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(30_000)
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.get_by_label("Words").wait_for()
    yield page
    page.close()
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not failed


def write(page, text):
    page.get_by_label("Words").fill(text)
    page.keyboard.press("Enter")
    page.locator(".cue-parts .name", has_text=text).wait_for()


def counts(page, selector, number):
    """Waits until so many elements fit the selector."""
    page.wait_for_function(
        "([selector, n]) => document.querySelectorAll(selector).length == n", arg=[selector, number]
    )


def upload(page, path):
    page.set_input_files("input[type=file]", str(path))


def section(page, kind):
    """The line above the items of a kind."""
    return page.locator(".cue-kind", has_text=kind)


def shift(page, degrees):
    """Moves the slider by its number, and waits for the table to show it."""
    page.locator("input[type=number]").fill(str(degrees))
    page.keyboard.press("Tab")
    page.locator(".cue-parts .compound", has_text="→").wait_for()


def test_words_find_images_and_sounds(page):
    write(page, "a red circle")
    counts(page, ".cue-card", 8)
    counts(page, ".cue-card img", 4)
    counts(page, ".cue-card audio", 4)
    scores = [
        float(text.split()[1]) for text in page.locator(".cue-card .scores > span:first-child").all_inner_texts()
    ]
    assert scores[:4] == sorted(scores[:4], reverse=True)
    # Pictures and sounds really come from the server.
    loaded = "e => { e.scrollIntoView(); return e.decode().then(() => e.naturalWidth); }"
    assert page.locator(".cue-card img").first.evaluate(loaded) == 288
    played = "e => e.readyState ? e.duration : new Promise(done => e.onloadedmetadata = () => done(e.duration))"
    assert page.locator(".cue-card audio").first.evaluate(played) == pytest.approx(0.3, abs=0.01)


def test_a_compound_of_words_an_image_and_a_sound(page, files):
    write(page, "a red circle")
    upload(page, files / "photo-1.png")
    page.locator(".cue-parts .name", has_text="photo-1.png").wait_for()
    upload(page, files / "sound-2.wav")
    page.locator(".cue-parts .name", has_text="sound-2.wav").wait_for()
    assert page.locator(".cue-parts .compound").inner_text().startswith("compound")
    assert page.locator(".cue-parts .mean").count() == 1
    # Without two of the parts it is a query of one.
    page.get_by_label("image: photo-1.png").uncheck()
    page.get_by_label("sound: sound-2.wav").uncheck()
    page.locator(".cue-parts .compound", has_text="query").wait_for()
    assert page.locator(".cue-parts .name").all_inner_texts() == ["a red circle"]


def test_a_sound_finds_itself_and_what_is_found_becomes_a_part(page, files):
    upload(page, files / "sound-2.wav")
    page.locator(".cue-parts .name", has_text="sound-2.wav").wait_for()
    nearest = page.locator(".cue-card", has=page.locator("audio")).first
    assert "sound-2.wav" in nearest.inner_text()
    assert "score 1.000" in nearest.inner_text()
    page.locator(".cue-card", has=page.locator("img")).first.locator("button").click()
    page.locator(".cue-parts .name", has_text="photo-").wait_for()


def test_the_radius_decides_what_is_inside(page):
    write(page, "a red circle")
    page.get_by_label("inside this concept").check()
    shift(page, 120)
    section(page, "4 of 4 inside").first.wait_for()
    counts(page, ".cue-card.inside", 8)
    shift(page, -120)
    page.get_by_text("None: try a wider radius.").first.wait_for()
    counts(page, ".cue-card", 0)
    page.get_by_label("nearest").check()
    page.locator(".cue-card").first.wait_for()
    counts(page, ".cue-card.inside", 0)


def test_texts_are_shown_where_they_are_asked_for(page):
    page.get_by_role("button", name="a dog runs").click()  # an example
    page.get_by_label("Texts").check()
    first = page.locator(".cue-kind", has_text="Texts").locator("+ .cue-grid .cue-card").first
    first.wait_for()
    assert "a dog runs" in first.inner_text()
    assert "score 1.000" in first.inner_text()


def test_bad_input_is_answered_with_a_reason(page, files, tmp_path):
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("There is no part to search by").wait_for()
    page.get_by_label("Words").fill("   ")
    page.keyboard.press("Enter")
    page.get_by_text("There are no words").wait_for()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    upload(page, tmp_path / "broken.png")
    page.get_by_text("the image 'broken.png' is no image that can be read").wait_for()
    # And it goes on.
    write(page, "a blue square")
    counts(page, ".cue-card", 8)
    page.get_by_role("button", name="Start over").click()
    page.get_by_text("Nothing is asked yet").wait_for()


def test_no_other_file_is_served(page, address, files):
    write(page, "a red circle")
    for path, status in ((files / "sound-0.wav", 200), (files / "photo-0.png", 403), (files / "notes.txt", 403)):
        assert page.request.get(f"{address}/gradio_api/file={path}").status == status
