"""The page in a browser: no errors, and a mouse, keys and a narrow window do what they should."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, WHY_NOT, Page, browser

from gmtool.progress import Progress
from gmtool.stages.report.config import ReportConfig
from gmtool.stages.report.run import report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)]

PLOT = '#scores [data-chart="scores-0"] .plot'


@pytest.fixture(scope="module")
def path(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "report.html"
    report([experiments, page], ReportConfig(), Progress())
    return page


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(started: Page, path: Path) -> Iterator[Page]:
    """The page, opened anew; after the test nothing has gone wrong in it, and nothing was asked of the network."""
    started.errors.clear()
    started.requests.clear()
    started.open(path)
    yield started
    assert started.errors == []
    assert all(request.startswith(("file:", "data:")) for request in started.requests)


def attribute(page: Page, selector: str, name: str) -> str:
    return page.run(f"document.querySelector('{selector}').getAttribute('{name}')")


def shown(page: Page, selector: str) -> int:
    """How many elements of a kind can be seen."""
    return page.run(f"[...document.querySelectorAll('{selector}')].filter(element => element.checkVisibility()).length")


def test_every_picture_is_there(page: Page) -> None:
    sizes = page.run(
        "[...document.images].filter(element => element.id !== 'viewer-image').map(element => element.naturalWidth)"
    )
    assert len(sizes) >= 10 and all(sizes)


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_the_window(page: Page, path: Path, width: int, dark: bool) -> None:
    page.open(path, width, 800, dark)
    assert page.run("document.documentElement.scrollWidth") == width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert shown(page, ".plot svg") >= 3


@pytest.mark.parametrize("width", [400, 1400])
def test_results_fit_the_window(page: Page, results: Path, tmp_path: Path, width: int) -> None:
    report([results, tmp_path / "report.html"], ReportConfig(), Progress())
    page.open(tmp_path / "report.html", width, 800)
    assert page.run("document.documentElement.scrollWidth") == width
    sizes = page.run("[...document.querySelectorAll('#reconstructions img')].map(element => element.naturalWidth)")
    assert len(sizes) == 4 and all(sizes)
    assert shown(page, "#likelihood tbody tr") == 2 == shown(page, "#reconstructions tbody tr")
    lengths = page.run("[...document.querySelectorAll('.results tbody th')].map(element => element.offsetHeight)")
    assert max(lengths) < 60  # names are not broken into letters


def test_light_and_dark_can_be_chosen(page: Page) -> None:
    page.click("#theme")
    assert attribute(page, "#theme", "aria-pressed") == "true"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


def test_contrast(page: Page, path: Path) -> None:
    """Texts and curves can be read in both colours: 4.5 to 1 for text, 3 to 1 for lines (WCAG 2.1)."""
    script = """(() => { const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3)
        .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; };
      const paper = light(getComputedStyle(document.body).backgroundColor), box = document.createElement("i");
      document.body.append(box);
      return ["ink", "soft", "accent", ...Array.from({length: 8}, (_, i) => `s${i}`)].map(name => {
        box.style.color = `var(--${name})`; const shade = light(getComputedStyle(box).color);
        return [name, Math.max(shade, paper) / Math.min(shade, paper)]; }); })()"""
    for dark in (False, True):
        page.open(path, dark=dark)
        for name, contrast in page.run(script):
            assert contrast >= (3 if name.startswith("s") and name != "soft" else 4.5), (name, dark)


def test_tabs(page: Page) -> None:
    assert shown(page, '[role="tabpanel"]') == 1
    page.click("#tab-1")
    assert attribute(page, "#tab-1", "aria-selected") == "true"
    assert shown(page, "#tabpanel-1 .plot svg") == 4  # a quarter each
    page.press("ArrowRight")
    assert attribute(page, "#tab-2", "aria-selected") == "true"
    assert page.run("document.activeElement.id") == "tab-2"
    assert shown(page, '[role="tabpanel"]') == 1
    page.press("End")
    page.press("ArrowRight")  # round to the first
    assert attribute(page, "#tab-0", "aria-selected") == "true"


def test_the_slider(page: Page) -> None:
    assert page.run("document.querySelector('#step-shown').textContent") == "4"
    before = page.run("[...document.querySelectorAll('.frame:not([hidden])')].map(element => element.dataset.step)")
    assert before == ["4", "4"]
    page.run("document.querySelector('#step').focus()")
    page.press("ArrowLeft")
    assert page.run("document.querySelector('#step-shown').textContent") == "2"
    after = page.run("[...document.querySelectorAll('.frame:not([hidden])')].map(element => element.dataset.step)")
    assert after == ["2", "2"]
    assert attribute(page, "#step", "aria-valuetext") == "step 2"


def test_a_picture_at_full_size(page: Page) -> None:
    page.click("#samples button.open")
    assert page.run("document.querySelector('#viewer').open")
    page.run("document.querySelector('#viewer-image').decode().then(() => 1)")
    page.settle()
    width = "document.querySelector('#viewer-image').getBoundingClientRect().width"
    first, caption = page.run(width), page.run("document.querySelector('#viewer-caption').textContent")
    page.click('[data-do="in"]')
    assert page.run(width) == pytest.approx(1.5 * first, rel=0.01)
    page.click('[data-do="fit"]')
    assert page.run(width) == pytest.approx(first, rel=0.01)
    page.press("ArrowRight")
    assert page.run("document.querySelector('#viewer-caption').textContent") != caption
    page.press("Escape")
    assert not page.run("document.querySelector('#viewer').open")
    assert page.run("document.activeElement.classList.contains('open')")  # where one was


def test_values_under_the_pointer(page: Page) -> None:
    """They are those of the data, at the point that is nearest."""
    lines = page.run("data.charts['scores-0'].axes.evaluations.lines.map(element => element.values.frechet_distance)")
    x, y = page.place(PLOT)
    page.move(x + 400, y)
    tip = page.run(f"document.querySelector('{PLOT} .tip').innerText")
    assert "network evaluations per sample\t2" in tip
    for values in lines:
        assert page.run(f"short({values[1]})") in tip
    page.move(5, 5)
    assert shown(page, f"{PLOT} .tip") == 0


def test_values_by_the_keyboard(page: Page) -> None:
    page.run(f"document.querySelector('{PLOT}').focus()")
    page.press("ArrowRight")
    page.press("End")
    assert "network evaluations per sample 2" in page.run(f"document.querySelector('{PLOT} + .skip').textContent")
    page.press("Escape")
    assert shown(page, f"{PLOT} .tip") == 0


def test_another_metric_and_axis(page: Page) -> None:
    label = f"document.querySelector('{PLOT} svg').textContent"
    assert "Fréchet distance" in page.run(label)
    choose = """((name, value) => { const each = document.querySelector(`#%s [data-choice="${name}"]`);
        each.value = value; each.dispatchEvent(new Event("input", {bubbles: true})); })"""
    page.run(f"{choose % 'scores'}('metric', 'recall')")
    assert "recall" in page.run(label)
    page.run(f"{choose % 'sweeps'}('axis', '--guidance-scale')")
    assert "guidance scale" in page.run("document.querySelector('#sweeps .plot svg').textContent")
    assert page.run("document.querySelectorAll('#sweeps .legend button').length") == 4


def test_scales_and_smoothing(page: Page) -> None:
    curve = "document.querySelector('#tabpanel-0 .curve').getAttribute('d')"
    plain = page.run(curve)
    page.click('#training input[value="log"] + span')
    logarithmic = page.run(curve)
    assert logarithmic != plain
    assert "log scale" in page.run("document.querySelector('#tabpanel-0 svg').textContent")
    page.run("document.querySelector('#training [data-choice=\"smooth\"]').focus()")
    page.press("Home")
    assert page.run(curve) != logarithmic


def test_a_run_can_be_hidden(page: Page) -> None:
    assert shown(page, "#tabpanel-0 .curve") == 2
    page.click("#training .legend button")
    assert shown(page, "#tabpanel-0 .curve") == 1
    assert attribute(page, "#training .legend button", "aria-pressed") == "false"


def test_provenance(page: Page) -> None:
    assert shown(page, "#nodes li") == 0
    page.run("document.querySelector('.graph a[aria-label^=\"run union\"]').focus()")
    page.press("Enter")
    assert shown(page, "#nodes li") == 1
    command = page.run("document.querySelector('#nodes li.chosen .command').textContent")
    assert command.startswith("gmtool train ") and "--source gmm" in command


def test_scales_of_numbers(page: Page) -> None:
    """Ticks lie inside, in order; a logarithmic scale of negative numbers keeps their order."""
    script = """[[1, 1000], [0.2, 0.9], [-2, 3], [-0.7, -0.2], [5, 5], [0, 1e-9]].flatMap(([low, high]) =>
      [true, false].map(log => { const made = scale([low, high, (low + high) / 2], log, 0.05);
        return [made.ticks, made.ticks.map(made.at), made.at(low), made.at(high)]; }))"""
    for ticks, places, low, high in page.run(script):
        assert len(ticks) >= 2 and ticks == sorted(ticks)
        assert places == sorted(places) and all(-1e-9 <= place <= 1 + 1e-9 for place in places)
        assert 0 <= low <= high <= 1
