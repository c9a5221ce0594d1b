"""The site in a real browser: what it loads, what its keys do, how it looks on a phone."""

import contextlib
import functools
import http.server
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.site import blocks, frames, traces

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.site,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(built_site: Path) -> Iterator[str]:
    """Serve the site; yield its address."""
    handler = functools.partial(Quiet, directory=str(built_site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Browser:
    """One page at a time; it notes errors, and lets nothing be asked of another host."""

    def __init__(self, chromium: Any, address: str) -> None:
        self.chromium, self.address = chromium, address
        self.errors: list[str] = []
        self.foreign: list[str] = []

    @contextlib.contextmanager
    def open(self, path: str, **options: Any) -> Iterator[Any]:
        context = self.chromium.new_context(**options)
        page = context.new_page()
        page.on(
            "console", lambda said: self.errors.append(said.text) if said.type == "error" else 0
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route("**/*", self._let_through)
        page.goto(f"{self.address}/{path}")
        yield page
        context.close()

    def _let_through(self, route: Any) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()


@pytest.fixture
def browser(address: str) -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        browser = Browser(chromium, address)
        yield browser
        chromium.close()
    assert browser.errors == []
    assert browser.foreign == []


PAGES = [str(page.relative_to(blocks.DOCS).with_suffix(".html")) for page in blocks.pages()]


class TestEveryPage:
    @pytest.mark.timeout(300)  # every page, in three sizes
    def test_it_opens_without_an_error_and_nothing_is_cut_off(self, browser: Browser) -> None:
        """What is wider than its place can be scrolled to, and shows that there is more.

        In a window of 1280 that is so of no code and no table.
        """
        scrolled: Counter[int] = Counter()
        for path in PAGES:
            with browser.open(path) as page:
                assert page.locator("h1").first.is_visible(), path
                for width in (1280, 390, 360):
                    page.set_viewport_size({"width": width, "height": 800})
                    found = page.evaluate(CUT_OFF)
                    assert found["lost"] == [], (path, width)
                    assert found["unmarked"] == [], (path, width)
                    scrolled[width] += len(found["scrolled"])
                    for what in found["scrolled"]:
                        assert width < 1280 or "diagram" in what, (path, what)
        assert scrolled[390] > 20, "nothing is found to be wide: the test does not look"

    def test_drawings_are_whole_and_legible_on_a_phone(self, browser: Browser) -> None:
        for path in PAGES:
            if "<!-- drawing: " not in (blocks.DOCS / path).with_suffix(".md").read_text():
                continue
            with browser.open(path, viewport={"width": 390, "height": 800}) as page:
                for drawing in page.locator("svg.sheet").all():
                    name = drawing.get_attribute("aria-labelledby")
                    for left, top, right, bottom, letters_px in drawing.evaluate(WORDS):
                        assert min(left, top, right, bottom) >= 0, (path, name)
                        assert letters_px >= 11, (path, name)

    def test_a_drawing_keeps_still_for_who_wants_no_motion(self, browser: Browser) -> None:
        (path,) = (
            str(page.relative_to(blocks.DOCS).with_suffix(".html"))
            for page in blocks.pages()
            if "<!-- drawing: fsdp-shards -->" in page.read_text()
        )
        for motion, name in (("no-preference", "breathe"), ("reduce", "none")):
            with browser.open(path, reduced_motion=motion) as page:
                breath = page.locator(".sheet .breath").first
                assert breath.evaluate("(one) => getComputedStyle(one).animationName") == name

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_can_be_read_in(self, scheme: str, browser: Browser) -> None:
        """The contrast of text to its background, as WCAG 2 defines it, is at least 4.5."""
        for path in ("index.html", "tutorial/stage1.html", "tutorial/stage3.html"):
            with browser.open(path, color_scheme=scheme) as page:
                for selector in (
                    "article p",
                    "article h2",
                    ".drawing .title",
                    ".trace-player .name",
                    "svg.sheet text",
                    "figure.sheet figcaption",
                ):
                    for ratio in page.evaluate(CONTRAST, selector):
                        assert ratio >= 4.5, (path, selector, ratio)


# Of an article: what is cut off, what can be scrolled without a sign of it, and what scrolls.
CUT_OFF = """() => {
  const width = document.documentElement.clientWidth;
  const name = (one) => `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`;
  const scrolls = (one) => one.scrollWidth > one.clientWidth + 1
    && ["auto", "scroll", "hidden"].includes(getComputedStyle(one).overflowX);
  const found = { lost: [], unmarked: [], scrolled: [] };
  if (document.documentElement.scrollWidth > width) found.lost.push("the page");
  for (const one of document.querySelectorAll("article *")) {
    if (one instanceof SVGElement) continue;
    if (scrolls(one)) {
      found.scrolled.push(name(one));
      const style = getComputedStyle(one);
      const sign = style.backgroundImage + style.maskImage;
      const marked = sign.includes("gradient") && style.overflowX !== "hidden";
      if (!marked) found.unmarked.push(name(one));
    }
    const place = one.getBoundingClientRect();
    if (!place.width || (place.left >= -1 && place.right <= width + 1)) continue;
    let outer = one.parentElement;
    while (outer && !scrolls(outer)) outer = outer.parentElement;
    if (!outer && one.textContent.trim()) found.lost.push(name(one));
  }
  return found;
}"""

# For each line of a drawing: how far it is from the four edges, and the size of its letters.
WORDS = """(drawing) => {
  const paper = drawing.getBoundingClientRect();
  const scale = paper.width / drawing.viewBox.baseVal.width;
  return [...drawing.querySelectorAll("text")].map((one) => {
    const place = one.getBoundingClientRect();
    const letters = parseFloat(getComputedStyle(one).fontSize) * scale;
    return [place.left - paper.left, place.top - paper.top, paper.right - place.right,
      paper.bottom - place.bottom, letters];
  });
}"""

CONTRAST = """(selector) => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (top, bottom) => {
    const alpha = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((at) => top[at] * alpha + bottom[at] * (1 - alpha));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((one) => {
      const part = one / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = numbers(getComputedStyle(document.body).backgroundColor);
  const shown = [...document.querySelectorAll(selector)].filter((one) => !one.closest("details"));
  return shown.slice(0, 40).map((one) => {
    const style = getComputedStyle(one);
    const ink = numbers(one instanceof SVGElement ? style.fill : style.color);
    const [dark, bright] = [light(over(ink, page)), light(page)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  });
}"""


class TestFrameInspector:
    def test_it_decodes_what_the_python_codec_made(self, browser: Browser) -> None:
        vectors = frames.make_vectors()
        with browser.open("tutorial/stage1.html") as page:
            for vector in vectors:
                data = list(bytes.fromhex(vector["hex"]))
                fields = page.evaluate("(bytes) => window.miniray.decodeFrame(bytes)", data)
                expected = [
                    {key: field[key] for key in ("name", "start", "stop")}
                    for field in vector["fields"]
                ]
                assert fields == expected
                for cut, reads in enumerate(vector["reads"], 1):
                    script = "([bytes, cut]) => window.miniray.readInTwo(bytes, cut)"
                    assert page.evaluate(script, [data, cut]) == reads

    def test_what_is_no_frame_is_refused(self, browser: Browser) -> None:
        with browser.open("tutorial/stage1.html") as page:
            script = """(text) => {
              try { return window.miniray.decodeFrame([...new TextEncoder().encode(text)]); }
              catch (error) { return error.message; }
            }"""
            assert page.evaluate(script, "GET / HTTP/1.1") == "no MiniRay frame"
            assert "in no field" in page.evaluate(script, "MRY1\x01\x00\x00\x00\x02{}more")

    def test_a_byte_shows_its_field_and_the_slider_cuts(self, browser: Browser) -> None:
        with browser.open("tutorial/stage2.html") as page:
            figure = page.locator(".frame-inspector[data-name=message]")
            figure.scroll_into_view_if_needed()
            figure.locator(".byte").nth(4).hover()
            assert "kind" in figure.locator(".field.shown").inner_text()
            slider = figure.locator("input")
            slider.focus()
            before = figure.locator(".reads").inner_text()
            for _ in range(4):
                page.keyboard.press("ArrowRight")
            assert figure.locator(".byte.late").count() == 18 - 9
            assert figure.locator(".reads").inner_text() != before
            assert figure.locator(".reads li").first.inner_text().startswith("wants 9, gets 9")

    def test_without_scripts_the_frame_is_there(self, browser: Browser) -> None:
        with browser.open("tutorial/stage1.html", java_script_enabled=False) as page:
            figure = page.locator(".frame-inspector").first
            assert figure.locator(".byte").count() == 14
            assert "length" in figure.inner_text()
            assert figure.locator("input").count() == 0


class TestTracePlayer:
    def test_it_steps_by_keys_and_by_buttons(self, browser: Browser) -> None:
        with browser.open("tutorial/stage3.html") as page:
            figure = page.locator(".trace-player").first
            figure.scroll_into_view_if_needed()
            words, slider = figure.locator(".words"), figure.locator("input")
            assert words.inner_text().startswith("1 of "), "it opens where the run begins"
            assert figure.locator(".event.future").count() > 10
            slider.focus()
            page.keyboard.press("ArrowRight")
            assert words.inner_text().startswith("2 of ")
            figure.get_by_role("button", name="one step forward").press("Enter")
            assert words.inner_text().startswith("3 of ")
            figure.get_by_role("button", name="one step back").click()
            assert words.inner_text().startswith("2 of ")
            slider.focus()
            page.keyboard.press("End")
            assert figure.locator(".future").count() == 0
            assert figure.locator(".kill").count() == 1

    def test_it_says_what_the_table_says(self, browser: Browser) -> None:
        with browser.open("tutorial/stage1.html") as page:
            figure = page.locator(".trace-player").first
            run = json.loads(figure.get_attribute("data-trace"))
            said = [
                page.evaluate("(event) => window.miniray.describeEvent(event)", event)
                for event in run["events"]
            ]
            assert said == [traces.words(event) for event in run["events"]]

    def test_without_scripts_the_whole_run_is_there(self, browser: Browser) -> None:
        with browser.open("tutorial/stage1.html", java_script_enabled=False) as page:
            figure = page.locator(".trace-player").first
            assert figure.locator("circle").count() > 10
            assert figure.locator("table tbody tr").count() > 10


class TestReading:
    def test_the_search_finds_what_a_reader_would_type(self, browser: Browser) -> None:
        wanted = {
            "zombie": "stage1.html",
            "lease": "stage4.html",
            "WorkerDied": "MINIRAY.html",
            "fake gpu": "MULTI_GPU_DESIGN.html",
            "tunnel": "guides/ssh.html",
            "kubectl": "guides/ssh.html",
            "short read": "exercises.html",
        }
        for typed, found in wanted.items():
            with browser.open("index.html", viewport={"width": 1280, "height": 900}) as page:
                page.keyboard.press("/")
                page.keyboard.type(typed)
                page.wait_for_function(
                    "(found) => [...document.querySelectorAll('.md-search-result__link')]"
                    ".some((link) => link.href.includes(found))",
                    arg=found,
                )

    def test_a_keyboard_is_enough_to_read_predict_and_go_on(self, browser: Browser) -> None:
        with browser.open("tutorial/stage1.html", viewport={"width": 1280, "height": 900}) as page:
            page.keyboard.press("Tab")
            assert "md-skip" in page.evaluate("document.activeElement.className")
            page.keyboard.press("Enter")
            summary = page.locator("details.question summary").first
            for _ in range(80):
                page.keyboard.press("Tab")
                if summary.evaluate("(one) => one === document.activeElement"):
                    break
            assert page.locator("details.question").first.get_attribute("open") is None
            page.keyboard.press("Enter")
            assert page.locator("details.question").first.get_attribute("open") is not None
            page.keyboard.press("n")  # the theme's key for the next page
            page.wait_for_url("**/stage2.html")


class TestPredictions:
    PAGE = "tutorial/stage1.html"

    def test_a_choice_is_kept_and_shown_beside_what_happened(self, browser: Browser) -> None:
        with browser.open(self.PAGE) as page:
            assert page.locator("fieldset.prediction").count() == 2
            page.locator("fieldset.prediction").first.locator("input").nth(1).check()
            page.reload()
            details = page.locator("details.predict").first
            assert not details.locator(".pair").is_visible()
            details.locator("summary").click()
            said = details.locator(".predicted").inner_text()
            assert said.split("\n")[-1] == "The size of this message, exactly"
            assert "stream socket carries bytes" in details.locator(".happened").inner_text()
            other = page.locator("details.predict").nth(1)
            other.locator("summary").click()
            assert "Nothing" in other.locator(".predicted").inner_text()

    def test_words_are_kept_where_there_are_no_choices(self, browser: Browser) -> None:
        with browser.open("tutorial/stage3.html") as page:
            page.locator("fieldset.prediction textarea").first.fill("<b>the listener</b>")
            page.reload()
            page.locator("details.predict").first.locator("summary").click()
            said = page.locator("details.predict .predicted").first.inner_text()
            assert said.endswith("<b>the listener</b>")

    def test_without_scripts_there_is_a_question_and_an_answer(self, browser: Browser) -> None:
        with browser.open(self.PAGE, java_script_enabled=False) as page:
            assert page.locator("fieldset").count() == 0
            assert page.get_by_text("There is none", exact=True).is_visible()
            details = page.locator("details.predict").first
            details.locator("summary").click()
            assert details.get_by_text("The second answer").is_visible()
