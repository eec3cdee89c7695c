"""The generated pages: whole, linked, true to the code, and readable without a network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tracking.folder import write_atomic
from tracking.metrics import METRICS
from workbench import registry
from workbench.docs import build
from workbench.docs.page import rendered
from workbench.params import table


class Links(HTMLParser):
    """Everything that a page points at, and the tags that are open at its end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.targets += [v for k, v in attrs if k in ("href", "src")]
        if tag not in ("meta", "br", "hr", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("docs")
    for profile, verdict in (("smoke", "open"), ("quick", "holds")):
        made = home / "studies" / f"tour-{profile}"
        claims = [{"verdict": verdict, "claim": "1 < 2 & so on", "paper": "x", "ours": "y", "how": "rule"}]
        write_atomic(made / "summary.json", json.dumps({"claims": claims, "failures": [], "links": {}}))
        for name in ("report.html", "tour.html"):
            write_atomic(made / name, f"<html>{profile}</html>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(home))
        build(folder)
    return folder


def test_every_link_leads_somewhere_and_every_tag_is_closed(pages):
    found = list(pages.rglob("*.html"))
    assert len(found) > len(registry.methods())
    for path in found:
        if path.parts[-3] == "studies":
            continue
        text = path.read_text()
        parsed = Links(text)
        assert parsed.open in ([], ["html"], [])
        for target in parsed.targets:
            if not target.startswith(("https://arxiv.org/", "https://doi.org/")):
                assert (path.parent / target).is_file(), f"{path.name}: {target}"
        assert "<script" not in text
        assert "default-src 'none'" in text


def test_a_methods_page_says_what_its_declaration_says(pages):
    for id in ("askewsgd", "favas", "luq"):
        text = (pages / "methods" / f"{id}.html").read_text()
        entry = registry.methods()[id]
        assert entry.paper_url in text
        for row in table(registry.load_method(id).Params):
            assert f">{row['name']}</th>" in text
        assert "workbench.run(" in text
    listing = (pages / "methods" / "index.html").read_text()
    assert all(f'href="{id}.html"' in listing for id in registry.methods())


def test_the_gallery_shows_the_largest_executed_profile_and_the_others_as_not_executed(pages):
    text = (pages / "index.html").read_text()
    assert "quick profile; claims: 1 holds" in text
    assert "1 &lt; 2 &amp; so on" in text
    assert (pages / "studies" / "tour" / "report.html").read_text() == "<html>quick</html>"
    assert "Not executed yet: <code>workbench study askewsgd</code>" in text


def test_the_guide_to_the_meters_has_every_metric(pages):
    text = (pages / "reading_the_meters.html").read_text()
    assert all(f">{name}</th>" in text for name in METRICS)


def test_the_method_of_the_guide_works_as_a_plugin(tmp_path, monkeypatch):
    source = (Path(build.__code__.co_filename).parent / "adding_a_method.md").read_text()
    (tmp_path / "signsgd.py").write_text(re.search(r"```python\n(.*?)```", source, re.S)[1])
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path))
    from workbench.runs import run

    ended = run("signsgd", "digits/mlp", {"epochs": 5}, tracking="off", progress=False)
    assert ended.metrics["eval/accuracy"] > 0.7  # ten classes: chance is 0.1


def test_html_in_a_docstring_is_shown_and_not_obeyed():
    assert "&lt;script&gt;" in rendered("a <script>alert(1)</script> b")
