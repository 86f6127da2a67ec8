"""report.html in a real headless browser: it shows what it should to everybody, complains about nothing, and asks the network for nothing."""

from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.docml_assets.report.samples import predictions_table, report

EVIL = "<script>document.title = 'stolen'</script><img src='https://evil.example/pixel' onerror='document.title = 1'>"
LABELS = ("invoice", "letter", EVIL)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = predictions_table(120, ("tiny", "large"), labels=LABELS)
    files = report(
        table, LABELS, excerpts=lambda guid: f"{guid}: {EVIL}", settings={"settings": {"LABELS_QUERY": EVIL}}
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(files.html)
    return path


class Opened:
    """The page, and what was heard while it was open."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.console: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")


@pytest.fixture
def opened(page: Page, path: Path) -> Opened:
    return Opened(page, path)


def test_nothing_is_requested_and_nothing_goes_wrong(opened: Opened, path: Path) -> None:
    assert opened.console == []
    assert opened.requests == [path.as_uri()]
    assert opened.page.title() == "EXP-1-test run 2"


def test_a_document_with_a_script_is_shown_as_text(opened: Opened) -> None:
    excerpt = opened.page.locator("#mistakes blockquote").first
    expect(excerpt).to_contain_text("<script>document.title = 'stolen'</script><img")
    assert opened.page.locator("script, img, iframe, object").count() == 0
    expect(opened.page.locator("#labels tbody")).to_contain_text("<script>")
    expect(opened.page.locator("#settings")).to_contain_text("<img src='https://evil.example/pixel'")


def test_the_page_shows_its_sections(opened: Opened) -> None:
    for section in ("scores", "comparison", "past", "labels", "confusion", "mistakes", "disagreements", "lineage"):
        expect(opened.page.locator(f"#{section} h2")).to_be_visible()
    charts = opened.page.locator("svg.chart")
    assert charts.count() == 4
    for index in range(4):
        box = charts.nth(index).bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 80
    expect(opened.page.locator("#scores .card").first).to_contain_text("macro-F1, 95 % interval")
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_everybody_can_read_it(chromium: Browser, path: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    """Contrast, names, order and keyboard access, as axe-core judges them by WCAG 2 at level AA."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(path.as_uri())
    found = Axe().run(page).response["violations"]
    page.close()
    assert [(each["impact"], each["id"], each["nodes"][0]["target"]) for each in found] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(chromium: Browser, path: Path, scheme: str) -> None:
    page = chromium.new_page(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(path.as_uri())
    colors = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    page.close()
    ink, paper = (sum(color[:3]) / 3 for color in colors)
    assert (ink < 80 and paper > 200) if scheme == "light" else (ink > 180 and paper < 60)


A4 = 718  # pixels between the margins of a sheet
TEXT_OF_CHARTS = """[...document.querySelectorAll('svg.chart text')].map(
    text => parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a)"""
STOP = """() => { const at = document.activeElement, box = at.getBoundingClientRect();
    return at === document.body ? null : {place: [Math.round(box.top + scrollY), box.left],
        name: at.getAttribute('aria-label') || (at.matches('a, summary') ? at.textContent.trim() : '')}; }"""
WARNING = """document.querySelector('header.top').insertAdjacentHTML('beforeend', '<p class="warning">a warning</p>')"""


@pytest.mark.parametrize(("media", "width"), [("screen", 400), ("print", A4)])
def test_charts_can_be_read_on_a_telephone_and_on_paper(
    chromium: Browser, path: Path, media: Literal["screen", "print"], width: int
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(media=media)
    page.goto(path.as_uri())
    sizes = page.evaluate(TEXT_OF_CHARTS)
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    assert min(sizes) > 9
    assert wide <= width


def test_paper_is_white_and_has_what_is_closed_on_the_screen(chromium: Browser, path: Path) -> None:
    page = chromium.new_page(viewport={"width": A4, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print")
    page.goto(path.as_uri())
    page.evaluate(WARNING)
    for part in ("body", ".warning", "td", ".note"):
        color, back = page.locator(part).first.evaluate(
            "part => ['color', 'backgroundColor'].map(name => getComputedStyle(part)[name].match(/\\d+/g).map(Number))"
        )
        assert sum(color[:3]) / 3 < 120, part
        assert back[3:] == [0] or sum(back[:3]) / 3 > 200, part
    closed = page.locator("details:not([open])")
    assert closed.count() > 0
    assert closed.first.evaluate(
        "part => part.querySelector('.document').checkVisibility({contentVisibilityAuto: true})"
    )
    page.close()


def test_the_keyboard_goes_through_the_page_in_order_and_every_stop_has_a_name(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    stops = []
    while (stop := opened.page.evaluate(STOP)) is not None:
        stops.append(stop)
        opened.page.keyboard.press("Tab")
    assert len(stops) > 15
    assert [stop for stop in stops if not stop["name"]] == []
    assert [stop["place"] for stop in stops] == sorted(stop["place"] for stop in stops)
    assert opened.page.locator("th:not([scope])").count() == 0


def test_a_narrow_screen_needs_no_sideways_scrolling(chromium: Browser, path: Path) -> None:
    page = chromium.new_page(viewport={"width": 420, "height": 800})
    page.goto(path.as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    assert wide <= 420
