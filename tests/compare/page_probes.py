"""What tests of the report look at pages with: a parser, a browser's helpers, scripts."""

import json
import os
from html.parser import HTMLParser

from sample_results import METHODS, sample_published, write_large, write_sample

from fusion_plugins.compare.pictures import baseline_of, draw_pictures
from fusion_plugins.compare.report import render
from fusion_plugins.compare.results import Comparison

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """Tags, attributes, ids and visible text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.source = text
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    @property
    def visible(self):
        return " ".join(" ".join(self.text).split())

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]


def page_of(folder, pictures=True):
    """The page of a results folder; without its figures it is made much faster."""
    comparison = Comparison.read(folder)
    baseline = baseline_of(comparison)
    drawn = draw_pictures(comparison, baseline) if pictures else ()
    return render(comparison, drawn, baseline)


def write_report(folder, pictures=True):
    """The page of a results folder, written into it."""
    path = folder / "report.html"
    path.write_text(page_of(folder, pictures), "utf-8")
    return path


def report(folder, pictures=True, **options):
    return Page(page_of(write_sample(folder, **options), pictures))


def edit_cell(folder, change, pattern="*"):
    paths = sorted((folder / "cells").glob(pattern))
    assert paths
    for path in paths:
        cell = json.loads(path.read_text())
        change(cell)
        path.write_text(json.dumps(cell))


def start_browser(binary, driver, profile):
    """Headless Chromium that looks nothing up: its paths and profile are given."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, so selenium has nothing to look up or download.
    service = Service(driver, env={**os.environ, "SE_OFFLINE": "true"})
    return webdriver.Chrome(options=options, service=service)


NASTY = (
    ("<script>window.hacked=1</script>", {}, 0.7, 1.0, True, True, True),
    ('"><img src=x onerror="window.hacked=1">', {}, 0.6, 2.0, True, True, True),
)


def write_pages(root):
    """Name -> URL of a usual page, the largest, a short one, a failed one, a hostile one."""
    folders = {
        "usual": write_sample(root / "usual", layers=40, published=sample_published()),
        "large": write_large(root / "large", layers=40),
        "one": write_sample(root / "one", methods=METHODS[5:6], seeds=(0,), layers=3),
        "failed": write_sample(root / "failed", methods=METHODS[-1:]),
        "nasty": write_sample(root / "nasty", methods=NASTY, tasks=("<b>a", "b", "c")),
    }
    return {
        name: write_report(folder, pictures=name != "one").as_uri()
        for name, folder in folders.items()
    }


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


OVERFLOW = """
  const limit = document.documentElement.clientWidth;
  return [...document.querySelectorAll('main *, header h1')].filter((node) => {
    if (node.closest('.scroll, nav, pre, .chips') || !node.getClientRects().length) return false;
    const box = node.getBoundingClientRect();
    return box.width && (box.right > limit + 1 || box.left < -1);
  }).map((node) => node.outerHTML.slice(0, 90));
"""


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
