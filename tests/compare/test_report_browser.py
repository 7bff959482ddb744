"""The page in a browser: sizes, themes, sorting, fold-outs, charts that react."""

import shutil

import pytest
from page_probes import (
    CONTRAST,
    NASTY,
    OVERFLOW,
    css,
    run,
    show,
    start_browser,
    use_theme,
    write_pages,
)
from sample_results import METHODS

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One headless browser for all tests of this file."""
    driver = start_browser(BROWSER, DRIVER, tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> URL of the pages that are looked at."""
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("name", ["usual", "large", "one", "failed", "nasty"])
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


@pytest.mark.parametrize("name", ["usual", "large", "nasty"])
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
    show(browser, pages["usual"] + "#methods", 375)
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(browser, pages, theme):
    show(browser, pages["usual"], theme=theme)
    selectors = (
        "main p, main td, main th, .key, .badge, dt, small, figcaption, svg text, nav a,"
        " .deviation, .paper, summary, label, [data-save]"
    )
    found = run(browser, CONTRAST, selectors)
    assert len(found) > 15
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def set_field(browser, selector, value):
    script = """
        const field = document.querySelector(arguments[0]);
        field.value = arguments[1];
        field.dispatchEvent(new Event('input', {bubbles: true}));
    """
    run(browser, script, selector, value)


def shown(browser, selector):
    return [node for node in css(browser, selector) if node.is_displayed()]


def test_filters_leave_out_rows_columns_and_marks_of_figures(browser, pages):
    show(browser, pages["usual"])
    figure = "[data-figure=time] svg"
    dots = len(shown(browser, f"{figure} g[class]"))
    set_field(browser, "[data-filter=methods]", "awd, tint")
    rows = shown(browser, "#results-table tbody tr")
    labels = [row.find_element("tag name", "th").get_attribute("title") for row in rows]
    assert labels == ["tinting_pp", "awd (alpha=0.2, scale_free=True)", "awd"]
    assert len(shown(browser, f"{figure} g[class]")) < dots
    set_field(browser, "[data-filter=methods]", "-awd")
    assert len(shown(browser, "#results-table tbody tr")) == len(METHODS) - 2
    set_field(browser, "[data-filter=tasks]", "shapes,TEXT")
    heads = [head.text.split("\n")[0] for head in shown(browser, "#results-table th")]
    assert [h for h in heads if h in ("digits", "shapes", "textures", "letters")] == [
        "shapes",
        "textures",
    ]
    assert css(browser, ".filters output")[0].text == "8 of 10 methods, 2 of 6 tasks"


def test_differences_to_any_row(browser, pages):
    show(browser, pages["usual"])
    rows = css(browser, "#results-table tbody tr")
    index = next(i for i, row in enumerate(rows) if "TIES" in row.text)

    def averages():
        return [row.find_element("css selector", ".mean").text for row in rows]

    before, exact = averages(), [float(v or "nan") for v in column(browser, 1)]
    set_field(browser, ".filters select", rows[index].get_attribute("data-row"))
    for text, value in zip(averages(), exact, strict=True):
        difference = 100 * (value - exact[index])
        want = "–" if value != value else f"{difference:+.1f}".replace("-", "−")
        assert text == want.replace("+0.0", "0.0")
    set_field(browser, ".filters select", "")
    assert averages() == before


def test_a_figure_is_saved_with_the_colours_of_paper(browser, pages):
    show(browser, pages["usual"], theme="dark")
    svg, url = run(
        browser,
        """
        let saved;
        HTMLAnchorElement.prototype.click = function () { saved = [this.download, this.href]; };
        document.querySelector('[data-figure=time] [data-save]').click();
        return saved;
        """,
    )
    assert svg == "time.svg" and url.startswith("data:image/svg+xml,%3Csvg")
    assert "var(" not in url and "%230862a8" in url


def test_large_comparisons_fit_phone_and_desktop(browser, pages):
    for width, most in ((375, 6000), (1440, 4000)):
        show(browser, pages["large"], width)
        assert run(browser, OVERFLOW) == []
        assert run(browser, "return document.documentElement.scrollHeight") < most
        hidden = run(
            browser,
            "return [...document.querySelectorAll('#results-table thead th')]"
            ".filter((h) => h.getBoundingClientRect().right > innerWidth).length",
        )
        assert (hidden == 0) is (width > 1000)


def test_coefficients_are_read_by_pointer_and_by_keys(browser, pages):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["usual"] + "#coefficients")
    picture = css(browser, "[data-figure=coefficients] [class^=m] image")[0]
    output = css(browser, "[data-figure=coefficients] output")[0]
    picture.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert output.text.startswith("tinting_pp: shapes, visual.class_embedding: 0.")
    webdriver.ActionChains(browser).move_to_element(picture).perform()
    assert output.text.startswith(("tinting_pp: textures", "tinting_pp: letters"))


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
