"""A Study: the runs, tables, figures and claims of one paper, as one notebook.

In a notebook::

    study = Study("askewsgd", "AskewSGD: ...", parameters(globals(), StudyParameters))
    accuracy = study.run(grid(["askewsgd", "binaryconnect"], "digits/mlp"))
    study.claim(exceeds("AskewSGD is more accurate than BinaryConnect", "88.98 against 88.33", ...))
    study.close()

:func:`execute` runs such a notebook through papermill, prints the verdicts and says where everything is.
"""

from __future__ import annotations

import json
import sys
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tracking.address import home, passwords, public_uri, tracking_uri
from tracking.errors import UserError, unknown
from tracking.folder import write_atomic
from workbench.claims import Claim
from workbench.executed import run_notebook, to_html
from workbench.params import Field, P, Params, from_text, parse
from workbench.study_log import Links, log

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from tracking.report import Table
    from workbench.comparison import Comparison
    from workbench.runs import Run

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
        self.runs: list[Run] = []
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
        self.runs += result.runs
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
            log(self, uri, links)
        self.write_summary(links)
        return links

    def write_summary(self, links: Mapping[str, str]) -> None:
        """Write ``summary.json``: the verdicts, what failed, and ``links``."""
        summary = {"id": self.id, "title": self.title, "profile": self.parameters.profile, "links": links,
                   "claims": [c.row() for c in self.claims], "failures": self.failures}
        write_atomic(self.folder / "summary.json", json.dumps(summary, indent=1))


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
    failed = run_notebook(Path(rows[id]["notebook"]), output, given)
    if failed:
        print(f"\nThe notebook stopped: {failed}\nSee {output}", file=sys.stderr)
        return 1
    _say(json.loads((folder / "summary.json").read_text()), output, to_html(output))
    return 0


def _say(summary: dict[str, Any], output: Path, page: Path) -> None:
    """Print the verdict table and where to look."""
    print(f"\n{summary['title']} ({summary['profile']} profile)\n")
    for number, row in enumerate(summary["claims"], 1):
        text = textwrap.fill(f"[{row['verdict'].upper()}] {row['claim']}", 110, initial_indent=f"  {number}. ", subsequent_indent="     ")
        print(f"{text}\n     paper: {row['paper']}\n     ours:  {row['ours']}\n     rule:  {row['how']}")
    for failure in summary["failures"]:
        print(f"  ! {failure}")
    print(f"\n  {'executed notebook':<26} {output}\n  {'as a page':<26} {page}\n  {'report':<26} {summary['links']['report']}")
    for name, link in summary["links"].items():
        if name != "report":
            print(f"  {'MLflow' if name == 'mlflow' else name:<26} {link}")
    if "mlflow" in summary["links"]:
        print("                             (start the server with `make ui`, or `workbench ui`)")


def require_checkout() -> Path:
    """The notebooks folder of the source checkout."""
    if not NOTEBOOKS.is_dir():
        raise UserError("The study notebooks are part of the source checkout: clone the project and install it with `pip install -e`.")
    return NOTEBOOKS
