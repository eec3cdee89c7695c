"""A Study: the runs, tables, figures and claims of one paper, as one notebook.

In a notebook::

    study = Study("askewsgd", "AskewSGD: ...", parameters(globals(), StudyParameters))
    accuracy = study.run(grid(["askewsgd", "binaryconnect"], "digits/mlp"))
    study.claim(exceeds("AskewSGD is more accurate than BinaryConnect", "88.98 against 88.33", ...))
    study.close()

:func:`execute` runs such a notebook through papermill, prints the verdicts and says where everything is.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import sys
import textwrap
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tracking.address import home, passwords, public_uri, tracking_uri
from tracking.errors import UserError, unknown
from tracking.folder import write_atomic
from workbench.claims import Claim
from workbench.params import Field, P, Params, from_text, parse

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from tracking.report import Table
    from workbench.comparison import Comparison

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PROFILES = ("smoke", "quick", "full")
_PARAMETERS = "_workbench_parameters"  # where a notebook's namespace remembers which of its names are parameters
NOT_PARAMETERS = {"In", "Out", "exit", "quit", "get_ipython", "open"}  # what IPython itself puts into a notebook's namespace


class StudyParameters(Params):
    """The parameters cell of every study notebook."""

    profile: Literal["smoke", "quick", "full"] = Field(
        "quick", description="how much is run: seconds, minutes on two CPU cores, or the paper's scale on a GPU")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<number>")
    seeds: int = Field(0, ge=0, le=1000, description="seeds a configuration; 0 = the profile's own number")
    tracking_uri: str = Field("", description="MLflow address; empty = $MLFLOW_TRACKING_URI or the project's SQLite file; off = none")


def parameters(namespace: dict[str, Any], model: type[P] = StudyParameters) -> P:
    """Check what the parameters cell and papermill left in a notebook's namespace, and return it typed.

    Call it in the first cell after the parameters, with ``globals()``: every name in there is then a parameter, so
    one that papermill injected under a misspelt name is an error here, although papermill only warns.
    """
    names = [n for n, v in namespace.items() if not n.startswith("_") and n not in NOT_PARAMETERS
             and not isinstance(v, types.ModuleType | type | types.FunctionType)]
    # a second execution of the cell finds the notebook's own variables too: what counts is what was there at the first
    names = namespace.setdefault(_PARAMETERS, names)
    given = {name: namespace[name] for name in names}
    address = given.get("tracking_uri")
    if isinstance(address, str) and passwords(address):
        raise UserError(f"tracking_uri = {public_uri(address)!r} has a password, which would stay in the notebook. "
                        "Set MLFLOW_TRACKING_URI in the environment instead.")
    return parse(model, given, "this notebook")


class Study:
    """Collects the evidence of a study. ``profile`` and the rest come from the notebook's checked parameters."""

    def __init__(self, id: str, title: str, parameters: StudyParameters, *, paper: str = "") -> None:
        self.id, self.title, self.paper, self.parameters = id, title, paper, parameters
        self.key = f"{id}-{parameters.profile}"
        self.folder = home() / "studies" / self.key
        self._claims: dict[str, Claim] = {}
        self._told: dict[str, Claim] = {}
        self._failures: dict[str, str] = {}
        self._sections: dict[str, Any] = {}

    def choose(self, smoke: Any, quick: Any, full: Any) -> Any:
        """The value for the profile in force."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.parameters.profile]

    def seeds(self, smoke: int, quick: int, full: int) -> int:
        """Number of seeds: the parameter, or else the profile's own."""
        return self.parameters.seeds or self.choose(smoke, quick, full)

    def run(self, runs: Iterable[Mapping[str, Any]], *, seeds: int, metric: str = "eval/accuracy", **options: Any) -> Comparison:
        """Sweep over ``runs`` and seeds as children of this study; failures are listed in the study, never raised."""
        from workbench.comparison import compare
        from workbench.sweeps import sweep

        p = self.parameters
        result = sweep(runs, seeds=seeds, device=p.device, tracking=p.tracking_uri or None, experiment=self.id, parent=self.key,
                       tags={"workbench.study": self.id, "workbench.profile": p.profile}, **options)
        for job, reason in result.failures:
            key = json.dumps(job, sort_keys=True, default=str)
            self._failures[key] = f"{job['method']} on {job['task']}, seed {job.get('seed', 0)}: {reason}"
        for ended in result.runs:
            if ended.status != "finished":
                spec = ended.spec
                self._failures[ended.key] = f"{spec['method']} on {spec['task']}, seed {spec['seed']}: {ended.status}, {ended.reason}"
        return compare(result.runs, metric=metric)

    @property
    def claims(self) -> list[Claim]:
        return list(self._claims.values())

    @property
    def failures(self) -> list[str]:
        """What did not finish, a line each."""
        return list(self._failures.values())

    def show(self, item: plotly.graph_objects.Figure | pandas.DataFrame, heading: str, text: str = "") -> Any:
        """Put a figure or a table into the report under a heading, in place of an earlier one there.

        Returns it for the notebook to display.
        """
        self._sections[heading] = (heading, text, item) if text else (heading, item)
        return item

    def claim(self, claim: Claim) -> None:
        """Add a claim with its verdict, or replace the one with the same text."""
        self._claims[claim.text] = claim

    def verdicts(self, new: bool = False) -> Table:
        """The claims table: what the paper says, what was measured, the verdict and its rule; ``new``: only what was not shown yet."""
        import pandas

        from tracking.report import Table

        rows = [{"no": str(number), **c.row()} for number, c in enumerate(self.claims, 1) if not (new and self._told.get(c.text) == c)]
        self._told |= self._claims
        return Table(pandas.DataFrame(rows), "Each claim of the paper, its figure and ours, and the rule of the verdict.")

    def image_task(self, dataset: str, model: str, sizes: dict[str, Any], stand_in: str) -> tuple[str, dict[str, Any]]:
        """Task id and task parameters for a data set where it can be had, else for the embedded ``stand_in``.

        The report says so where the stand-in is used.
        """
        from workbench import data

        try:
            data.load(dataset)
        except UserError as error:
            note = f"{dataset} is not at hand, so {stand_in} stands in and the paper's figures do not apply. {error}"
            print(note)
            self._sections["Data"] = ("Data", note)
            return stand_in, {}
        if note := data.provenance(dataset).get("note"):
            self._sections[f"About {dataset}"] = (f"About {dataset}", note)
        return f"{dataset}/{model}", sizes

    def paper_table(self, comparison: Comparison, paper: Mapping[str, str], metric: str = "eval/accuracy") -> pandas.DataFrame:
        """Paper / ours / ours (full) by method, in percent; a figure that was never measured is absent.

        Ours is the last epoch's; the best epoch's, chosen on the test set as papers often do, stands beside it.
        """
        import pandas

        from tracking.results import kept
        from workbench.claims import figure

        full = kept(self.id)
        rows = []
        for method in dict.fromkeys([*paper, *(g.method for g in comparison.groups)]):
            last, best = comparison.values(method, metric), comparison.values(method, metric, best=True)
            row = {"method": method, "paper [%]": paper.get(method), "ours [%]": figure(last, 1, 100) if last else None,
                   "ours, best epoch [%]": figure(best, 1, 100) if best else None}
            for r in full[(full["method"] == method) & (full["metric"] == metric)].to_dict("records"):
                spread = f" ± {100 * r['half_width']:.2f}" if r["n"] > 1 else ""
                row[f"ours (full, {r['hardware']}) [%]"] = f"{100 * r['mean']:.2f}{spread} (n = {r['n']})"
            rows.append(row)
        return pandas.DataFrame(rows)

    def close(self) -> dict[str, str]:
        """Write the report and ``summary.json``, log both to the study's MLflow run, and return where everything is."""
        from tracking.report import Table, report
        from tracking.results import shown
        from workbench.provenance import environment

        links = Links()
        sections = [*self._sections.values()]
        if self.claims:
            sections.insert(0, ("Claims", self.verdicts()))
        if len(full := shown(self.id)):
            note = "Made on the hardware named, with the code of the commit named; mean ± half-width of the 95 % interval over n seeds."
            sections.append(("Kept from runs at full size", Table(full, note)))
        if self.failures:
            sections.append(("Runs that did not finish", "\n".join(f"- {f}" for f in self.failures)))
        about = {"study": self.id, "profile": self.parameters.profile, "paper": self.paper, **environment()}
        links["report"] = str(report(self.folder / "report.html", self.title, sections, about))
        uri = tracking_uri(self.parameters.tracking_uri or None)
        if uri:
            self._log(uri, links)
        self._write_summary(links)
        return links

    def _write_summary(self, links: dict[str, str]) -> None:
        summary = {"id": self.id, "title": self.title, "profile": self.parameters.profile, "links": links,
                   "claims": [c.row() for c in self.claims], "failures": self.failures}
        write_atomic(self.folder / "summary.json", json.dumps(summary, indent=1))

    def _log(self, uri: str, links: dict[str, str]) -> None:
        """Log to the store and publish the saved views there; a store that cannot be reached costs the copy there, nothing here."""
        from tracking.shipping import one_line
        from tracking.store import Store
        from tracking.views import publish

        try:
            store = Store(uri)
            # as tags, because a study may be run again with other parameters and MLflow's are written once
            given = self.parameters.model_dump(exclude={"tracking_uri"})
            tags = {"workbench.study": self.id, **{f"workbench.{k}": str(v) for k, v in given.items()},
                    "workbench.claims": self._counts()}
            run_id = store.study_run(self.key, self.id, f"{self.id} ({self.parameters.profile})", tags=tags)
            store.describe_experiment(self.id, f"**{self.title}**" + (f" ({self.paper})" if self.paper else ""))
            published = publish(self.id, tracking=uri, report=links["report"])
            links["mlflow"] = store.run_url(run_id, self.id)
            links.update(published.links)
            if published.note and published.links:  # else there was nothing to show
                links["views"] = published.note
            store.study_run(self.key, self.id, note=self._note(store.experiment(self.id), run_id, published.links))
            self._write_summary({})
            store.log_artifacts(run_id, [self.folder / "report.html", self.folder / "summary.json"])
            store.finish(run_id, "finished")
        except Exception as error:
            links["mlflow"] = f"not logged: {type(error).__name__}: {one_line(error, uri)}"

    def _counts(self) -> str:
        """How many claims have which verdict."""
        return ", ".join(f"{count} {verdict}" for verdict, count in Counter(c.verdict for c in self.claims).items()) or "none"

    def _note(self, experiment_id: str, run_id: str, views: Mapping[str, str]) -> str:
        """What MLflow shows on the study's page: where to look, the verdicts, the parameters, what did not finish."""
        from tracking import notes, pages

        where = {"report": pages.artifact(experiment_id, run_id, "report.html"),
                 "runs of this study": pages.matching(experiment_id, f"tags.`mlflow.parentRunId` = '{run_id}'"), **views}
        local = {name: link[link.index("/#/") + 1:] if "/#/" in link else link for name, link in where.items()}
        claims = notes.table(("verdict", "claim", "ours", "paper"),
                             [(f"**{c.verdict}**", *map(notes.plain, (c.text, c.ours, c.paper))) for c in self.claims])
        given = notes.table(("parameter", "value"), [(notes.code(k), notes.code(v)) for k, v in
                                                     self.parameters.model_dump(exclude={"tracking_uri"}).items()])
        head = f"**{notes.plain(self.title)}**" + (f" ({notes.plain(self.paper)})" if self.paper else "")
        failed = "\n".join(f"- {notes.plain(f)}" for f in self.failures)
        return notes.whole([head, f"Claims: {self._counts()} · {notes.linked(local)}", claims, failed, given])


class Links(dict[str, str]):
    """Where things are, by name; a notebook shows what can be clicked."""

    def _repr_html_(self) -> str:
        rows = []
        for name, target in self.items():
            href = target if target.startswith("http") else Path(target).as_uri() if os.path.isabs(target) else ""
            shown = html.escape(target)
            link = f'<a href="{html.escape(href)}" target="_blank">{shown}</a>' if href else shown
            rows.append(f"<li>{html.escape(name)}: {link}</li>")
        return f"<ul>{''.join(rows)}</ul>"


# --- executing notebooks ------------------------------------------------------------------------------------


def studies() -> list[dict[str, str]]:
    """The study notebooks, the tour first: id, title, notebook."""
    rows = []
    for path in sorted(require_checkout().glob("*.ipynb")):
        about = json.loads(path.read_text())["metadata"].get("workbench", {})
        if "study" in about:
            rows.append({"id": about["study"], "title": about["title"], "notebook": str(path)})
    return sorted(rows, key=lambda row: (row["id"] != "tour", row["id"]))


def execute(id: str, *, profile: str = "quick", parameters: Mapping[str, str] | None = None, output: Path | None = None) -> int:
    """Execute a study's notebook through papermill; returns 0, or 1 when a cell failed.

    ``parameters`` are texts as typed on a command line. The executed notebook, its HTML and the report lie in
    ``<home>/studies/<id>-<profile>/``.
    """
    rows = {row["id"]: row for row in studies()}
    if id not in rows:
        raise unknown("study", id, rows)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    given = {"profile": profile, **from_text(StudyParameters, parameters or {})}
    checked = parse(StudyParameters, given, f"study {id!r}")
    folder = home() / "studies" / f"{id}-{checked.profile}"
    output = output or folder / f"{id}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)
    failed = _papermill(Path(rows[id]["notebook"]), output, given)
    if failed:
        print(f"\nThe notebook stopped: {failed}\nSee {output}", file=sys.stderr)
        return 1
    _say(json.loads((folder / "summary.json").read_text()), output, _to_html(output))
    return 0


def _papermill(notebook: Path, output: Path, given: Mapping[str, Any]) -> str:
    """Execute; returns what went wrong in a line, or an empty text. What the kernel itself prints goes to ``kernel.log``.

    An address with a password reaches the kernel by its environment, because Papermill writes parameters into the notebook.
    """
    import papermill

    given, secret = dict(given), {}
    if passwords(given.get("tracking_uri", "")):
        secret["MLFLOW_TRACKING_URI"] = given.pop("tracking_uri")
    with _kernel_log(output.with_name("kernel.log")), _environment(secret):
        try:
            papermill.execute_notebook(str(notebook), str(output), parameters=given, kernel_name="python3",
                                       cwd=str(notebook.parent), progress_bar={"desc": notebook.stem, "unit": "cell"})
        except papermill.exceptions.PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}"
    return ""


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that child processes get, and this one only for so long."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _kernel_log(path: Path) -> Iterator[None]:
    """Give child processes a file for their standard error, while this process keeps writing to the terminal."""
    old, here = os.dup(2), sys.stderr
    with open(path, "wb") as log, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        os.dup2(log.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        finally:
            sys.stderr = here
            os.dup2(old, 2)
            os.close(old)


def _to_html(notebook: Path) -> Path:
    """The executed notebook as a page; figures live, plotly.js inlined once."""
    import nbformat
    import plotly.io
    from nbconvert import HTMLExporter

    document = nbformat.read(notebook, as_version=4)
    script = True
    for cell in document.cells:
        for item in cell.get("outputs", ()):
            figure = item.get("data", {}).get("application/vnd.plotly.v1+json")
            if figure:
                drawn = {k: figure[k] for k in ("data", "layout")}
                item["data"] = {"text/html": plotly.io.to_html(drawn, full_html=False, include_plotlyjs=script)}
                script = False
    body, _ = HTMLExporter().from_notebook_node(document)
    page = notebook.with_suffix(".html")
    write_atomic(page, body)
    return page


def _say(summary: dict[str, Any], output: Path, page: Path) -> None:
    """Print the verdict table and where to look."""
    print(f"\n{summary['title']} ({summary['profile']} profile)\n")
    for number, row in enumerate(summary["claims"], 1):
        text = textwrap.fill(f"[{row['verdict'].upper()}] {row['claim']}", 110, initial_indent=f"  {number}. ", subsequent_indent="     ")
        print(f"{text}\n     paper: {row['paper']}\n     ours:  {row['ours']}\n     rule:  {row['how']}")
    for failure in summary["failures"]:
        print(f"  ! {failure}")
    print(f"\n  executed notebook  {output}\n  as a page          {page}\n  report             {summary['links']['report']}")
    for name, link in summary["links"].items():
        if name != "report":
            print(f"  {'MLflow' if name == 'mlflow' else name:<18} {link}")
    if "mlflow" in summary["links"]:
        print("                     (start the server with `make ui`, or `workbench ui`)")


def require_checkout() -> Path:
    """The notebooks folder of the source checkout."""
    if not NOTEBOOKS.is_dir():
        raise UserError("The study notebooks are part of the source checkout: clone the project and install it with `pip install -e`.")
    return NOTEBOOKS
