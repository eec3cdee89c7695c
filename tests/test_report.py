"""Reports: the page is parsed as HTML, searched for anything that could leave the machine, and opened in a browser without a network."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest

from tracking.errors import UserError
from tracking.figures import curves
from tracking.report import Picture, Table, cell_text, paragraphs, report, table_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "img", "link", "br", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text outside scripts, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.stack, self.data = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.stack[-1] if self.stack else ("", {})
        if tag == "script":
            self.data[attrs.get("id", attrs.get("type", "js"))] = data
        else:
            self.text.append(data)


def _figure(name="a"):
    frame = pandas.DataFrame({"step": [1, 2, 3], "eval/accuracy": [0.1, 0.5, 0.9]})
    return curves({name: [frame, frame * 1.1]}, "eval/accuracy", note=name)


@pytest.fixture
def page(tmp_path):
    table = pandas.DataFrame({"method": ["a", EVIL], "eval/accuracy": [0.91234567, np.nan]})
    path = report(tmp_path / "deep" / "r.html", EVIL, [
        ("First", f"Some **bold** text with `code` and {EVIL}.\n\n- one\n- two", Table(table, "A caption"), table),
        (EVIL, _figure(EVIL), None, Picture(_figure(), pandas.DataFrame({"own": [1]}), "Own caption")),
    ], {"commit": "abc123", "note": EVIL})
    return path


def test_page_is_well_formed_and_escapes_everything(page):
    text = page.read_text()
    parsed = Page(text)
    assert not any(tag == "img" for tag, _ in parsed.tags)
    assert not any(a.startswith("on") for _, attrs in parsed.tags for a in attrs)
    assert " ".join(parsed.text).count(EVIL) >= 5  # title, heading, text, table, provenance: shown as it was given
    assert len(json.loads(parsed.data["figures"])) == 2
    assert text.count('plotly.js v') == 1  # inlined once for both figures


def test_page_refers_to_nothing_outside(page):
    parsed = Page(page.read_text())
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_page_has_structure_for_assistive_technology(page):
    parsed = Page(page.read_text())
    tags = [t for t, _ in parsed.tags]
    assert ("html", {"lang": "en"}) in parsed.tags
    assert tags.count("main") == tags.count("nav") == tags.count("footer") == tags.count("h1") == 1
    assert all(a.get("scope") in ("col", "row") for t, a in parsed.tags if t == "th")
    assert tags.count("table") == tags.count("caption") == 4  # two tables, and the data of two figures
    assert tags.count("details") == tags.count("summary") == 2
    plots = [a for _, a in parsed.tags if a.get("class") == "plot"]
    assert all(a["role"] == "group" and a["aria-label"] for a in plots)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_table_has_units_and_marks_absence():
    text = table_html(Table(pandas.DataFrame({"method": ["a"], "comm/up_bytes to eval/accuracy 0.9": [np.nan], "n": [3]}), "c"))
    assert "comm/up_bytes [B] to eval/accuracy [fraction] 0.9" in text
    assert '<td class="number">–</td><td class="number">3</td>' in text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (float("nan"), "–"), (0.123456, "0.1235"), (1234567.0, "1,234,567"), (3, "3"),
                                            (27648, "27,648"), (True, "yes"),
                                             (12345.678, "12,346"), (0.0, "0"), (1.5e-7, "1.5e-07"), (float("inf"), "inf"), ("x", "x")])
def test_cell_text(value, text):
    assert cell_text(value) == text


def test_paragraphs_and_lone_backtick():
    assert paragraphs("one\ntwo\n\n- a\n- b") == "<p>one two</p><ul><li>a</li><li>b</li></ul>"
    assert paragraphs("a `b` **c** `**d**`") == "<p>a <code>b</code> <strong>c</strong> <code>**d**</code></p>"
    assert paragraphs("5` long") == "<p>5` long</p>"
    assert paragraphs("<b>") == "<p>&lt;b&gt;</p>"


def test_long_data_tables_say_that_they_show_a_part(tmp_path):
    frame = pandas.DataFrame({"step": range(1900), "eval/accuracy": np.random.default_rng(0).random(1900)})
    text = report(tmp_path / "r.html", "t", [("s", curves({"a": [frame]}, "eval/accuracy"))]).read_text()
    assert "380 of 1900 rows" in text


def test_report_refuses(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.html"):
        report(tmp_path / "r.pdf", "t", [])
    with pytest.raises(UserError, match="int is refused"):
        report(tmp_path / "r.html", "t", [("s", 3)])
    assert list(tmp_path.iterdir()) == []


def test_without_figures_there_is_no_script_but_the_one_that_follows_links(tmp_path):
    text = report(tmp_path / "r.html", "t", [("s", "text")]).read_text()
    assert text.count("<script") == 1
    assert 'location.protocol === "blob:"' in text
    assert "Plotly" not in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_page_draws_offline_in_light_and_dark_and_works_by_keyboard(page):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            tab = browser.new_context(offline=True, color_scheme="light").new_page()
            wrong, asked = [], []
            tab.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
            tab.on("pageerror", lambda e: wrong.append(str(e)))
            tab.on("dialog", lambda d: (wrong.append("a script of the data ran"), d.dismiss()))
            tab.on("request", lambda r: asked.append(r.url) if r.url.startswith(("http", "ws")) else None)
            tab.goto(page.as_uri())
            for number in (1, 2):
                tab.locator(f"#plot{number} .scatterlayer .trace").first.wait_for(state="attached")
            tick = tab.locator("#plot1 .xtick text").first
            light = tick.evaluate("e => getComputedStyle(e).fill")
            tab.emulate_media(color_scheme="dark")
            playwright.expect(tick).not_to_have_css("fill", light)
            assert tab.locator("details[open]").count() == 0
            tab.locator("summary").first.focus()
            tab.keyboard.press("Enter")
            assert tab.locator("details[open] table").count() == 1
            buttons = tab.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.attr + b.dataset.title + (b.href || ''))")
            assert buttons
            assert not [b for b in buttons if "loud" in b or "Share" in b or "http" in b]  # none leads out of the page
            assert wrong == []
            assert asked == []
            # as MLflow shows it: a blob: address in a frame that may run scripts and nothing else
            tab.goto("about:blank")
            tab.set_content("<iframe sandbox='allow-scripts' width=600 height=300></iframe>")
            tab.evaluate("""text => document.querySelector("iframe").src = URL.createObjectURL(new Blob([text], {type: "text/html"}))""",
                         page.read_text())
            inside = tab.frame_locator("iframe")
            inside.locator("#plot2 .scatterlayer .trace").first.wait_for(state="attached")
            inside.locator("nav a").nth(1).click()
            playwright.expect(inside.locator("#s2")).to_be_focused()
            playwright.expect(inside.locator("#s2")).to_be_in_viewport()
            assert wrong == []
            assert asked == []
        finally:
            browser.close()
