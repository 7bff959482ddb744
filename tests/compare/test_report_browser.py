"""The page in a browser: sizes, themes, sorting, fold-outs, charts that react."""

import os
import shutil

import pytest
from sample_results import METHODS, sample_published, write_sample

from fusion_plugins.compare.report import write_report

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (pip install selenium)"
)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="chromium and chromedriver are not installed"
        " (Debian: apt-get install chromium chromium-driver)",
    ),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
NASTY = (
    ("<script>window.hacked=1</script>", {}, 0.7, 1.0, True, True, True),
    ('"><img src=x onerror="window.hacked=1">', {}, 0.6, 2.0, True, True, True),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One headless browser for all tests of this file."""
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, so selenium has nothing to look up or download.
    service = Service(DRIVER, env={**os.environ, "SE_OFFLINE": "true"})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> URL of the pages that are looked at."""
    root = tmp_path_factory.mktemp("pages")
    many = [
        (f"method_{i}", {"alpha": i}, 0.6, 2.0**i, True, i < 2, True) for i in range(25)
    ]
    long_names = [f"a_rather_long_task_name_{index}" for index in range(20)]
    folders = {
        "usual": write_sample(root / "usual", published=sample_published()),
        "many": write_sample(root / "many", methods=many, tasks=long_names, layers=20),
        "one": write_sample(root / "one", methods=METHODS[5:6], seeds=(0,)),
        "failed": write_sample(root / "failed", methods=METHODS[-1:]),
        "nasty": write_sample(root / "nasty", methods=NASTY, tasks=("<b>a", "b", "c")),
    }
    return {name: write_report(folder).as_uri() for name, folder in folders.items()}


def use_theme(browser, theme):
    features = [
        {"name": "prefers-color-scheme", "value": theme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def show(browser, url, width=1280, theme="light"):
    use_theme(browser, theme)
    size = {
        "width": width,
        "height": 800,
        "deviceScaleFactor": 1,
        "mobile": width < 600,
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get(url)


def run(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


def css(browser, selector):
    return browser.find_elements("css selector", selector)


@pytest.mark.parametrize("name", ["usual", "many", "one", "failed", "nasty"])
def test_no_sideways_scrolling_and_no_error(browser, pages, name):
    for width in (375, 1280):
        show(browser, pages[name], width)
        run(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
        for theme in ("light", "dark"):
            use_theme(browser, theme)
            inner, content = run(
                browser,
                "return [innerWidth, document.documentElement.scrollWidth]",
            )
            assert inner == width and content <= width
        assert browser.get_log("browser") == []


OVERFLOW = """
  const limit = document.documentElement.clientWidth;
  return [...document.querySelectorAll('main *, header h1')].filter((node) => {
    if (node.closest('.scroll, nav, pre, .chips') || !node.getClientRects().length) return false;
    const box = node.getBoundingClientRect();
    return box.width && (box.right > limit + 1 || box.left < -1);
  }).map((node) => node.outerHTML.slice(0, 90));
"""


@pytest.mark.parametrize("name", ["usual", "many", "nasty"])
def test_nothing_sticks_out_of_a_phone(browser, pages, name):
    show(browser, pages[name], 375)
    assert run(browser, OVERFLOW) == []


def test_wide_table_scrolls_in_its_own_box_with_the_method_in_sight(browser, pages):
    show(browser, pages["usual"], 375)
    before, after, overflow = run(
        browser,
        """
        const box = document.querySelector('#results .scroll');
        const name = box.querySelector('tbody th');
        const left = () => Math.round(name.getBoundingClientRect().left);
        const before = left();
        box.scrollLeft = 200;
        return [before, left(), box.scrollWidth > box.clientWidth];
        """,
    )
    assert overflow and before == after


def column(browser, index):
    cells = css(browser, f"#results-table tbody tr > :nth-child({index + 1})")
    return [cell.get_attribute("data-sort") for cell in cells]


@pytest.mark.parametrize("by", ["click", "keyboard"])
def test_headings_sort_and_say_so(browser, pages, by):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["usual"])
    heads = css(browser, "#results-table thead th")
    press = {
        "click": lambda button: button.click(),
        "keyboard": lambda button: button.send_keys(Keys.ENTER),
    }[by]
    assert heads[1].get_attribute("aria-sort") == "descending"
    index = [head.text.split("\n")[0] for head in heads].index("shapes")
    button = heads[index].find_element("tag name", "button")
    for order in ("descending", "ascending"):
        press(button)
        values = column(browser, index)
        numbers = [float(value) for value in values if value]
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert len(numbers) == 9 and values[-1] == ""  # what failed stays last
        assert heads[index].get_attribute("aria-sort") == order
        assert heads[1].get_attribute("aria-sort") is None
    press(heads[0].find_element("tag name", "button"))
    assert column(browser, 0) == sorted(column(browser, 0))


def test_badge_of_a_failed_method_opens_its_error(browser, pages):
    show(browser, pages["usual"])
    fold = css(browser, "details.failure")[0]
    assert not fold.find_element("tag name", "pre").is_displayed()
    css(browser, "#results-table a.badge")[0].click()
    assert fold.find_element("tag name", "pre").is_displayed()


def test_configs_fold_out(browser, pages):
    show(browser, pages["usual"], 375)
    folds = css(browser, "#methods details")
    assert len(folds) == len(METHODS)
    folds[1].find_element("tag name", "summary").click()
    assert "_target_" in folds[1].find_element("tag name", "pre").text


def test_theme_button_turns_the_system_theme_round_and_is_remembered(browser, pages):
    def background():
        return run(browser, "return getComputedStyle(document.body).backgroundColor")

    show(browser, pages["usual"], theme="light")
    run(browser, "localStorage.clear()")
    show(browser, pages["usual"], theme="light")
    light = background()
    css(browser, "#theme")[0].click()
    dark = background()
    assert dark != light
    show(browser, pages["usual"], theme="light")
    assert background() == dark
    run(browser, "localStorage.clear()")
    show(browser, pages["usual"], theme="dark")
    assert background() == dark


def test_a_dark_page_prints_light_on_paper_and_stays_dark(browser, pages):
    def colour():
        return run(browser, "return getComputedStyle(document.body).backgroundColor")

    show(browser, pages["usual"], theme="dark")
    dark = colour()
    run(browser, "dispatchEvent(new Event('beforeprint'))")
    assert colour() != dark
    run(browser, "dispatchEvent(new Event('afterprint'))")
    assert colour() == dark
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(pdf["data"]) > 50_000


CONTRAST = """
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const colour = (text, under) => {
    context.fillStyle = under; context.fillRect(0, 0, 1, 1);
    context.fillStyle = text; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = getComputedStyle(document.body).backgroundColor;
  const ground = (node) => {
    const chain = [];
    for (; node; node = node.parentElement) chain.push(getComputedStyle(node).backgroundColor);
    return chain.reverse().reduce((under, over) => `rgb(${colour(over, under)})`, page);
  };
  const found = {};
  for (const node of document.querySelectorAll(arguments[0])) {
    const under = ground(node);
    const style = getComputedStyle(node);
    const ink = node instanceof SVGElement ? style.fill : style.color;
    const pair = [light(colour(ink, under)), light(colour(under, page))].sort((a, b) => b - a);
    found[node.className.baseVal ?? `${node.tagName} ${node.className}`] = (pair[0] + 0.05) / (pair[1] + 0.05);
  }
  return found;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(browser, pages, theme):
    show(browser, pages["usual"], theme=theme)
    selectors = (
        "main p, main td, main th, .key, .badge, dt, small, figcaption, svg text, nav a,"
        " .deviation, .paper, .bar-value, .x-title, .y-title, summary, .chip"
    )
    found = run(browser, CONTRAST, selectors)
    assert len(found) > 15
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def test_radar_boxes_show_and_hide_outlines(browser, pages):
    show(browser, pages["usual"])
    boxes = css(browser, ".chips input")
    shown = [box for box in boxes if box.is_selected()]
    assert (len(boxes), len(shown)) == (9, 5)  # the references and three methods
    hidden = next(box for box in boxes if not box.is_selected())
    outline = css(browser, f"[data-outline='{hidden.get_attribute('data-for')}']")[0]
    assert not outline.is_displayed()
    hidden.click()
    assert outline.is_displayed()


def test_coefficients_are_read_by_pointer_and_by_keys(browser, pages):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["usual"])
    picture = css(browser, ".picture")[0]
    output = css(browser, "[data-heat] output")[0]
    picture.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert output.text.startswith("shapes, visual.class_embedding: 0.")
    webdriver.ActionChains(browser).move_to_element(picture).perform()
    assert output.text.startswith(("textures", "letters"))


def test_names_from_results_cannot_run_code(browser, pages):
    show(browser, pages["nasty"])
    assert run(browser, "return window.hacked") is None
    assert "<script>window.hacked=1</script>" in css(browser, "h1, .lead")[1].text
    # Even markup that got through would not run: the policy refuses it.
    run(
        browser,
        "document.body.insertAdjacentHTML('beforeend', arguments[0])",
        NASTY[1][0],
    )
    assert run(browser, "return window.hacked") is None
    assert any(
        "Content Security Policy" in e["message"] for e in browser.get_log("browser")
    )
