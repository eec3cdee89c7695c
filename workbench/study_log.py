"""A study in MLflow: its run with report and verdicts, the saved views, and links to all of it."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.address import public_uri

if TYPE_CHECKING:
    from tracking.store import Store
    from workbench.study import Study


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


def log(study: Study, uri: str, links: dict[str, str]) -> None:
    """Log to the store and publish the saved views there; a store that cannot be reached costs the copy there, nothing here."""
    from tracking.shipping import one_line
    from tracking.store import Store
    from tracking.views import publish

    try:
        store = Store(uri)
        _name_groups(study, store)
        # as tags, because a study may be run again with other parameters and MLflow's are written once
        given = study.parameters.model_dump(exclude={"tracking_uri"})
        tags = {"workbench.study": study.id, **{f"workbench.{k}": str(v) for k, v in given.items()},
                "workbench.claims": _counts(study)}
        run_id = store.study_run(study.key, study.id, f"{study.id} ({study.parameters.profile})", tags=tags)
        store.describe_experiment(study.id, study.title + (f" ({study.paper})" if study.paper else ""))
        published = publish(study.id, tracking=uri, report=links["report"])
        links["mlflow"] = store.run_url(run_id, study.id)
        links.update(published.links)
        if published.note and published.links:  # else there was nothing to show
            links["views"] = published.note
        store.study_run(study.key, study.id, note=_note(study, store.experiment(study.id), run_id, published.links))
        study.write_summary({})
        store.log_artifacts(run_id, [study.folder / "report.html", study.folder / "summary.json"])
        store.finish(run_id, "finished")
    except Exception as error:
        links["mlflow"] = f"not logged: {type(error).__name__}: {one_line(error, uri)}"


def _name_groups(study: Study, store: Store) -> None:
    """Tell the store what sets the groups of the study apart, which is shorter than all that a run begins with (``provenance.setting``),
    and colours in which no two of its methods look alike.

    Runs that were made for another experiment and came from the cache are left as they are there.
    """
    from tracking.store import COLOUR, GROUP
    from tracking.styles import colours_of
    from workbench.grouping import group

    where = public_uri(store.uri)
    groups = group(study.runs)[0]
    colours = colours_of(g.method for g in groups)
    for g in groups:
        setting = [word for word in g.label.split(" ")[1:] if word != g.task]
        for run in g.runs:
            run_id = run.folder.read_cursors().get(where, {}).get("run_id")
            if run_id is not None and run.folder.read_run()["experiment"] == study.id:
                store.put_tags(run_id, {GROUP: " ".join([g.method, g.task, *setting]), COLOUR: colours[g.method]})


def _counts(study: Study) -> str:
    """How many claims have which verdict."""
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(c.verdict for c in study.claims).items()) or "none"


def _note(study: Study, experiment_id: str, run_id: str, views: Mapping[str, str]) -> str:
    """What MLflow shows on the study's page: where to look, the verdicts, the parameters, what did not finish."""
    from tracking import notes, pages

    where = {"report": pages.artifact(experiment_id, run_id, "report.html"),
             "runs of this study": pages.matching(experiment_id, f"tags.`mlflow.parentRunId` = '{run_id}'"), **views}
    claims = notes.table(("verdict", "claim", "ours", "paper"),
                         [(f"**{c.verdict}**", *map(notes.plain, (c.text, c.ours, c.paper))) for c in study.claims])
    given = notes.table(("parameter", "value"), [(notes.code(k), notes.code(v)) for k, v in
                                                 study.parameters.model_dump(exclude={"tracking_uri"}).items()])
    head = f"**{notes.plain(study.title)}**" + (f" ({notes.plain(study.paper)})" if study.paper else "")
    failed = "\n".join(f"- {notes.plain(f)}" for f in study.failures)
    return notes.whole([head, f"Claims: {_counts(study)} · {notes.linked(where)}", claims, failed, given])
