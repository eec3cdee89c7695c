"""The generated pages: whole, linked, true to the code, and readable without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import browser_page, why_not
from tracking.errors import UserError
from tracking.folder import write_atomic
from tracking.metrics import METRICS
from workbench import registry
from workbench.cli import build_parser
from workbench.cli_options import pairs
from workbench.docs import build
from workbench.docs.page import rendered
from workbench.docs.reference import python_call, shell_call
from workbench.params import from_text, parse, table
from workbench.study import Links


class Found(HTMLParser):
    """Everything that a page points at, its anchors, and the tags that are open at its end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_startendtag(self, tag, attrs):
        self.targets += [v for k, v in attrs if k in ("href", "src")]
        self.anchors |= {v for k, v in attrs if k == "id"}

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br", "hr", "img", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def executed_notebook(profile: str) -> str:
    """As the exporter writes it: a text with links, a progress bar's widget, and an output that draws by a script of its own."""
    import nbformat.v4 as v4
    from nbconvert import HTMLExporter

    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a", "version_major": 2, "version_minor": 0}, "text/plain": "0%"}
    drawn = {"text/html": f"<script>document.title = '{profile} drawn'</script> {Links({'report': '/far/away/report.html'})._repr_html_()}"}
    text = v4.new_markdown_cell("[a study](askewsgd.ipynb) [itself](00_tour.ipynb) [paper](https://arxiv.org/abs/1) $x^2$")
    cells = [text, *(v4.new_code_cell("1", outputs=[v4.new_output("display_data", data)]) for data in (widget, drawn))]
    return HTMLExporter().from_notebook_node(v4.new_notebook(cells=cells))[0]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("docs")
    for profile, verdict in (("smoke", "open"), ("quick", "holds")):
        made = home / "studies" / f"tour-{profile}"
        claims = [{"verdict": verdict, "claim": "1 < 2 & so on", "paper": "x", "ours": "y", "how": "rule"}]
        write_atomic(made / "summary.json", json.dumps({"claims": claims, "failures": [], "links": {}}))
        write_atomic(made / "report.html", f"<html>{profile}</html>")
        write_atomic(made / "tour.html", executed_notebook(profile))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(home))
        build(folder)
    return folder


def test_every_link_leads_somewhere_and_every_tag_is_closed(pages):
    found = {path: Found(path.read_text()) for path in pages.rglob("*.html")}
    assert len(found) > len(registry.methods())
    for path, parsed in found.items():
        assert parsed.open == [] or path.name == "report.html"
        for target in parsed.targets:
            if target.startswith(("https://arxiv.org/", "https://doi.org/")):
                continue
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), f"{path.name}: {target}"
            assert not anchor or anchor in found[there].anchors, f"{path.name}: {target}"


def test_a_page_runs_no_script_but_the_filter(pages):
    """The policy names the script's digest, worked out here from the page as it is."""
    for path in pages.rglob("*.html"):
        if path.parts[-3] == "studies":
            continue
        text = path.read_text()
        scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
        assert text.count("<script") == len(scripts) == (1 if 'class="filter"' in text else 0)
        allowed = re.search(r"default-src 'none'; .*script-src 'sha256-([^']+)'", text)[1]
        assert all(base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() == allowed for s in scripts)


def test_a_methods_page_says_what_its_declaration_says(pages):
    for id in ("askewsgd", "favas", "luq"):
        text = (pages / "methods" / f"{id}.html").read_text()
        entry = registry.methods()[id]
        assert entry.paper_url in text
        for row in table(registry.load_method(id).Params):
            assert f">{row['name']}</th>" in text
        assert f"workbench/methods/{entry.family}/{id}.py" in text
        assert f'href="index.html#{entry.family}"' in text
    listing = (pages / "methods" / "index.html").read_text()
    assert all(f'href="{id}.html"' in listing for id in registry.methods())


def test_every_task_is_listed_under_its_kind(pages):
    text = (pages / "tasks.html").read_text()
    parts = dict(re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', text, re.S))
    for id, entry in registry.tasks().items():
        assert re.search(rf"[ >]{re.escape(id)}[,<]", parts[entry.literals.get("kind", "classification")]), id


@pytest.mark.parametrize("id", registry.methods())
def test_the_calls_on_a_methods_page_are_its_example(id, monkeypatch):
    """The command as the shell and the command line read it, and the Python as Python does."""
    cls = registry.load_method(id)
    args = build_parser().parse_args(shlex.split(shell_call(id, cls.example).replace("\\\n", ""))[1:])
    assert (args.method, args.task) == (id, cls.example["task"])
    for model, key, typed in ((cls.Params, "params", args.set), (registry.load_task(args.task).Params, "task_params", args.task_set)):
        read = parse(model, from_text(model, pairs(typed, "--set")), "the command")
        assert read == parse(model, cls.example.get(key, {}), "the example")
    asked = []
    monkeypatch.setattr("workbench.run", lambda *words, **given: asked.append((words, given)), raising=False)
    exec(python_call(id, cls.example), {})
    assert asked == [((id, cls.example["task"]), {k: v for k, v in cls.example.items() if k != "task" and v})]


def test_the_gallery_shows_the_largest_executed_profile_and_the_others_as_not_executed(pages):
    text = (pages / "index.html").read_text()
    assert "quick profile, executed" in text
    assert "✓ holds: 1" in text
    assert "1 &lt; 2 &amp; so on" in text
    assert (pages / "studies" / "tour" / "report.html").read_text() == "<html>quick</html>"
    assert re.search(r"Not executed yet\. To execute it:</p><p><code>workbench study askewsgd</code>", text)


def test_a_notebooks_page_comes_without_what_it_would_fetch_and_its_links_lead_on(pages):
    assert 'src="http' in executed_notebook("quick"), "else there is nothing to take out"
    text = (pages / "studies" / "tour" / "tour.html").read_text()
    assert not re.search(r'<script[^>]*src="http|unpkg|widget-view', text)
    assert "<script>document.title = 'quick drawn'" in text
    assert text.index("Content-Security-Policy") < text.index("<title>")
    assert 'href="../tour/tour.html">itself' in text
    assert 'href="../../index.html">a study' in text
    assert 'href="report.html" target="_blank">/far/away/report.html<' in text


def test_an_unknown_profile_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'smoke'"):
        build(tmp_path / "docs", execute="smok")
    assert not (tmp_path / "docs").exists()


WHY_NOT = why_not()


@pytest.mark.browser
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_in_a_browser_on_a_desk_and_on_a_phone(pages):
    """Nothing is fetched, nothing is refused, no page is wider than the screen, and the filter filters."""
    shown = ["index.html", "methods/index.html", "methods/favas.html", "tasks.html", "reading_the_meters.html", "adding_a_method.html",
             "studies/tour/tour.html"]
    with browser_page() as page:
        fetched, troubles = [], []
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        for width, scheme in ((1280, "light"), (360, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            for name in shown:
                page.goto((pages / name).as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        assert page.title() == "quick drawn"  # a notebook's own scripts, its figures, do run
        assert {url.partition(":")[0] for url in fetched} == {"file"}
        page.goto((pages / "methods" / "index.html").as_uri())
        page.get_by_label("Filter").fill("Federated QUANT")
        words = [text.lower() for text in page.locator(".rows li:visible").all_inner_texts()]
        federated = [e for e in registry.methods().values() if e.family == "federated"]
        expected = [e.id for e in federated if "quant" in f"{e.id} {e.title} {e.summary}".lower()]
        assert len(words) == len(expected)
        assert page.locator("main section:visible").count() == min(1, len(expected))
        page.get_by_label("Filter").fill("1901.08164")  # by the number of its paper
        assert page.locator(".rows li:visible").all_inner_texts()[0].startswith("DGL")
        assert page.get_by_role("status").inner_text() == f"1 of {len(registry.methods())}"
        assert troubles == []


def test_the_guide_to_the_meters_has_every_metric(pages):
    text = (pages / "reading_the_meters.html").read_text()
    assert all(f">{name}</th>" in text for name in METRICS)


def test_the_method_of_the_guide_works_as_a_plugin(tmp_path, monkeypatch):
    source = (Path(build.__code__.co_filename).parent / "adding_a_method.md").read_text()
    method, its_test = re.findall(r"```python\n(.*?)```", source, re.S)
    namespace: dict = {}
    exec(method + re.sub(r"from workbench\.methods.*\n", "", its_test), namespace)
    namespace["test_a_step_is_the_definition"]()
    (tmp_path / "guide.py").write_text(method.replace('"signsgd"', '"guide"'))  # a reader may have saved it as it stands
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path))
    from workbench.runs import run

    ended = run("guide", "digits/mlp", {"epochs": 5}, tracking="off", progress=False)
    assert ended.metrics["eval/accuracy"] > 0.7  # ten classes: chance is 0.1


def test_html_in_a_docstring_is_shown_and_not_obeyed():
    assert "&lt;script&gt;" in rendered("a <script>alert(1)</script> b")
