"""The command line, as a person meets it: real processes, exit codes, and one readable line for a mistake."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workbench
from tracking.report import cell_text
from workbench import registry
from workbench.cli import build_parser, main
from workbench.grouping import scan
from workbench.runs import runs_root

ROOT = Path(__file__).parent.parent
VERBS = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
QUIET = ["--tracking", "off", "--threads", "1", "--device", "cpu"]


def cli(*words: str, code: int = 0, loads: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``workbench words`` in a process of its own. ``loads``: a file for the names of the modules that it imported."""
    command = [sys.executable, "-m", "workbench", *words]
    if loads:
        script = (
            "import sys\nfrom workbench.cli import main\n"
            "try:\n    code = main(sys.argv[2:])\nexcept SystemExit as end:\n    code = end.code\n"
            "open(sys.argv[1], 'w').write(' '.join({m.partition('.')[0] for m in sys.modules}))\nsys.exit(code)"
        )
        command = [sys.executable, "-c", script, loads, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def here(capsys):
    """The same in this process, which has paid for importing torch already: returns what is printed."""

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(words) == code
        return capsys.readouterr().out

    return call


def rows(text: str) -> list[list[str]]:
    """The cells of a printed table, head and rule left out."""
    return [re.split(r" {2,}", line) for line in text.splitlines()[2:]]


def test_every_name_of_the_package_is_there_and_hidden_by_no_module():
    """A module ``workbench.<name>`` would take the function's place as soon as anything imported it."""
    for name in workbench.__all__:
        assert callable(getattr(workbench, name))
        assert importlib.util.find_spec(f"workbench.{name}") is None
    assert sorted(workbench.__all__) == [name for name in dir(workbench) if name in workbench.__all__]


# --- listings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["methods"],
        ["methods", "--family", "lowbit"],
        ["tasks"],
        ["tasks", "--json"],
        ["methods", "--famly", "x"],
        ["methods", "--family", "lowbits"],
        ["nonsense"],
    ],
)
def test_listings_and_help_import_nothing_heavy(tmp_path, words):
    wrong = "--famly" in words or "nonsense" in words or "lowbits" in words
    cli(*words, code=2 if wrong else 0, loads=str(tmp_path / "loaded"))
    assert not {"torch", "numpy", "mlflow", "pandas", "plotly"} & set((tmp_path / "loaded").read_text().split())


def test_lists_are_the_registry_s():
    assert [row[0] for row in rows(cli("methods").stdout)] == list(registry.methods())
    assert [row[0] for row in rows(cli("tasks").stdout)] == list(registry.tasks())
    listed = json.loads(cli("methods", "--json").stdout)
    assert [m["id"] for m in listed] == list(registry.methods())
    assert all(set(m) == {"id", "title", "family", "summary", "paper"} for m in listed)


def test_describe_shows_every_parameter(here):
    fields = registry.load_method("binaryconnect").Params.model_fields
    assert [row[0] for row in rows(cli("describe", "binaryconnect").stdout)] == list(fields)
    described = json.loads(here("describe", "digits/mlp", "--json"))
    assert [r["name"] for r in described] == list(registry.load_task("digits/mlp").Params.model_fields)
    assert all(r["description"] and r["allowed"] for r in described)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for action in VERBS[verb]._actions:
        assert action.help or action.metavar or not action.option_strings or action.dest in text
        assert all(option in text for option in action.option_strings)


def test_a_reader_that_leaves_is_no_error():
    """As in ``workbench tasks | head -1``, with more to print than a pipe holds."""
    script = (
        "import sys\nimport workbench.cli as c\n"
        "c._tasks = lambda args: c.print_rows([{'id': 'x' * 100}] * 5000, False, None)\nsys.exit(c.main(['tasks']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait(30) == 0


# --- running ------------------------------------------------------------------------------------------------


def test_run_then_the_cache_then_afresh(toy, here):
    words = ["run", "toy", "toy", "--set", "steps=3", "--task-set", "dim=4", "--seed", "2", *QUIET]
    first, second, third = cli(*words).stdout, cli(*words).stdout, here(*words, "--fresh")
    assert [text.splitlines()[0] for text in (first, second, third)] == [
        "finished",
        "finished (from the cache)",
        "finished",
    ]

    def figures(text: str) -> dict[str, str]:
        lasting = [line.split() for line in text.splitlines() if re.match(r"(train|eval)/", line)]
        return {name: value for name, value in lasting}

    assert figures(first) == figures(second) == figures(third)
    assert figures(first)["train/samples"] == "3"
    folder = Path(re.search(r"^folder  (.*)$", first, re.M).group(1))
    spec = json.loads((folder / "run.json").read_text())["spec"]
    assert (spec["params"]["steps"], spec["task_params"]["dim"], spec["seed"], spec["threads"]) == (3, 4, 2, 1)


def test_a_failing_run_ends_with_one_and_one_line(toy, here):
    done = cli("run", "toy", "toy", "--set", "fail_at=1", *QUIET, code=1)
    assert done.stdout == ""
    told = [
        line for line in done.stderr.splitlines() if line.startswith("workbench: ")
    ]  # the others are the progress bar's
    assert len(told) == 1
    assert "ValueError: the toy broke" in told[0]
    assert here("run", "toy", "toy", "--set", "lr=3.0", "--set", "steps=100", *QUIET, code=1).startswith("diverged: ")


def test_a_budget_ends_a_run(toy, here):
    assert re.search(r"^train/samples +4$", here("run", "toy", "toy", "--budget", "train/samples=4", *QUIET), re.M)


def test_preview_tells_the_cost_of_the_run_and_leaves_nothing_behind(toy, here, own_home):
    words = ["toy", "toy", "--set", "steps=4", "--set", "talk=true", "--device", "cpu", "--threads", "1"]
    told = json.loads(here("preview", *words, "--json"))
    shown = {row[0]: row[1] for row in rows(here("preview", *words)) if len(row) == 2}
    assert not own_home.exists() or not any(own_home.iterdir())
    ended = here("run", *words, "--tracking", "off")
    sent = re.search(r"^comm/up_bytes +(\d+)$", ended, re.M).group(1)
    assert told["run_bytes"] == float(sent) == 4 * told["step_bytes"]
    assert shown["run_bytes"] == sent
    assert told["steps"] == 4
    assert told.keys() - {"model"} == shown.keys()
    assert not {"parameters", "flops", "model_j", "model"} & told.keys(), "the toy has no network: absent, not zero"


def test_preview_names_what_its_joules_are_modelled_for(here):
    text = here("preview", "full_precision", "digits/mlp", "--set", "epochs=1", "--task-set", "train_size=200", "--device", "cpu")
    assert re.search(r"^model_j +0\.\d+$", text, re.M)
    assert text.splitlines()[-1] == "model_j: modelled for ascend_like, as_trained"


def test_docs_and_views_hand_on_what_was_typed(here, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("workbench.docs.build", lambda folder, execute: asked.append((folder, execute)) or folder / "index.html")
    assert here("docs", str(tmp_path), "--execute", "smoke") == f"Pages: {(tmp_path / 'index.html').as_uri()}\n"
    assert asked == [(tmp_path, "smoke")]


def test_views_are_published_where_it_was_typed_and_their_links_printed(here, monkeypatch):
    from tracking.views import VIEWS, Published

    asked = []

    def publish(experiment, *, tracking, views):
        asked.append((experiment, tracking, [view.name for view in views]))
        return Published({"curves": f"http://{experiment}"}, "a note")

    monkeypatch.setattr("tracking.views.publish", publish)
    assert here("views", "mine", "tour", "--tracking", "http://there") == (
        "mine\n  curves: http://mine\n  a note\ntour\n  curves: http://tour\n  a note\n")
    here("views", "mine", "--view", "costs")
    assert [(e, t, len(names)) for e, t, names in asked] == [("mine", "http://there", len(VIEWS)), ("tour", "http://there", len(VIEWS)),
                                                             ("mine", None, 1)]


def test_sweep_with_a_failing_run_tells_which_and_runs_the_others(toy, here):
    done = cli("sweep", "toy", "toy", "--set", "steps=4", "--grid", "fail_at=-1,2", "--seeds", "2", *QUIET, code=1)
    assert done.stdout.count("finished") == 2
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert [re.match(r"failed: toy on toy, seed (\d): .*the toy broke", line).group(1) for line in failed] == ["0", "1"]
    assert here("sweep", "toy", "toy", "--set", "steps=4", "--seeds", "2", *QUIET).count("finished") == 2
    assert "toy" in cli("compare", "--metric", "eval/loss", "--task", "toy").stdout


def test_compare_works_joules_out_for_other_hardware(here):
    here("run", "full_precision", "digits/mlp", "--set", "epochs=1", "--task-set", "train_size=200", *QUIET)
    (made,) = scan(runs_root())
    for words, names in (([], ("ascend_like", "as_trained")), (["--hardware", "v100_like"], ("v100_like", "as_trained")),
                         (["--scenario", "unfused"], ("ascend_like", "unfused"))):
        text = here("compare", *words)
        assert f"energy/model_j is modelled for {', '.join(names)}: " in text
        assert f" {cell_text(200 * made.energy(*names).per_sample_j)} " in text


def test_sync_ships_once_what_lies_there(toy, here, tmp_path):
    here("run", "toy", "toy", "--set", "steps=3", *QUIET)
    store = f"sqlite:///{tmp_path}/m.db"
    first, second = cli("sync", "--tracking", store).stdout, here("sync", "--tracking", store)
    head = re.split(r" {2,}", first.splitlines()[0])
    sent = [int(rows(text)[0][head.index("sent")]) for text in (first, second)]
    assert sent[0] > 9
    assert sent[1] == 0
    here("sync", str(tmp_path / "nowhere"), "--tracking", store, code=2)


def test_data_list_and_doctor(here, tmp_path, monkeypatch):
    names = [row[0] for row in rows(cli("data", "list").stdout)]
    assert {"digits", "mnist", "cifar10"} <= set(names)
    path = cli("data", "fetch", "digits", "--to", str(tmp_path)).stdout.strip()
    assert Path(path) == tmp_path / "digits.npz"
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    assert str(tmp_path / "digits.npz") in cli("data", "verify", "digits").stdout
    Path(path).write_bytes(Path(path).read_bytes()[:1000])
    assert "False" in here("data", "verify", "digits", code=1)
    done = cli("doctor")
    states = {row[0]: row[1] for row in rows(done.stdout)}
    assert states["torch"] == states["catalogue"] == states["home"] == "ok"
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "nowhere"))
    assert {row[0]: row[1] for row in rows(here("doctor", code=1))}["WORKBENCH_DATA"] == "broken"


def test_studies_are_listed():
    ids = cli("study", "--ids").stdout.split()
    assert [row[0] for row in rows(cli("study").stdout)] == ids


def test_relative_paths_are_those_of_the_folder_typed_in(toy, tmp_path, monkeypatch):
    """A notebook kernel starts in another folder, and must find the same runs, data, plugins and store."""
    monkeypatch.chdir(tmp_path)
    given = {"WORKBENCH_HOME": "out", "WORKBENCH_DATA": "./data", "WORKBENCH_CACHE": "~/cache",
             "WORKBENCH_PLUGINS": os.pathsep.join(["plugins", str(tmp_path / "more")]), "MLFLOW_TRACKING_URI": "sqlite:///m.db"}
    (tmp_path / "more").mkdir()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "toy", "toy", "--set", "steps=3", *QUIET]) == 0
    script = ("import os\nfrom tracking.address import tracking_uri\nfrom workbench import data_sources, registry, runs\n"
              "r = runs.run('toy', 'toy', {'steps': 3}, threads=1, device='cpu', tracking='off')\n"
              "print(r.cached, r.folder.path, data_sources.data_folder(), data_sources.cache_folder(), tracking_uri(), sep='\\n')")
    (tmp_path / "notebooks").mkdir()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path / "notebooks", timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    cached, folder, data, cache, uri = done.stdout.splitlines()
    assert cached == "True"
    assert Path(folder).parent == tmp_path / "out" / "journals"
    assert (data, cache, uri) == (str(tmp_path / "data"), str(Path.home() / "cache"), f"sqlite:///{tmp_path}/m.db")


@pytest.mark.parametrize("uri", ["http://server:5000", "postgresql://db/x", "sqlite:////abs/m.db", "off", ""])
def test_other_addresses_and_what_is_not_set_are_left_alone(monkeypatch, capsys, uri):
    for name in ("WORKBENCH_DATA", "WORKBENCH_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKBENCH_HOME", "/somewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = dict(os.environ)
    assert main(["methods"]) == 0
    assert dict(os.environ) == before


# --- mistakes -----------------------------------------------------------------------------------------------

RUN = ["run", "toy", "toy", *QUIET]
MISTAKES = {
    "method": (["run", "tyo", "toy"], "Unknown method 'tyo'. Did you mean 'toy'?"),
    "task": (["run", "toy", "digts/mlp"], "Unknown task 'digts/mlp'. Did you mean 'digits/mlp'?"),
    "kind": (["run", "toy", "digits/mlp"], "'digits/mlp' is of kind classification"),
    "name": ([*RUN, "--set", "stepz=3"], "has no parameter 'stepz'. Did you mean 'steps'?"),
    "range": ([*RUN, "--set", "lr=0"], "lr = 0 is refused"),
    "nan": ([*RUN, "--set", "lr=NaN"], "lr = nan is refused"),
    "bool": ([*RUN, "--set", "talk=False"], "talk = 'False' is refused"),
    "number as text": ([*RUN, "--set", 'steps="3"'], "steps = '3' is refused"),
    "fraction": ([*RUN, "--set", "steps=2.5"], "steps = 2.5 is refused"),
    "no value": ([*RUN, "--set", "steps"], "--set 'steps' is refused. Write NAME=VALUE."),
    "task range": ([*RUN, "--task-set", "dim=0"], "dim = 0 is refused"),
    "seed": ([*RUN, "--seed", "-1"], "seed = -1 is refused"),
    "threads": ([*RUN, "--threads", "-2"], "threads = -2 is refused"),
    "device": ([*RUN, "--device", "gpu"], "device = 'gpu' is refused"),
    "budget metric": ([*RUN, "--budget", "clock/wall=3"], "Unknown metric 'clock/wall'. Did you mean 'clock/wall_s'?"),
    "budget value": ([*RUN, "--budget", "clock/wall_s=long"], "= 'long' is refused. Allowed: number."),
    "budget sign": ([*RUN, "--budget", "clock/wall_s=-1"], "clock/wall_s = -1.0 is refused"),
    "tracking": (["run", "toy", "toy", "--tracking", "/a/folder"], "Tracking address '/a/folder' is refused"),
    "describe": (["describe", "binaryconect"], "Did you mean 'binaryconnect'?"),
    "family": (["methods", "--family", "lowbits"], "Unknown family 'lowbits'. Did you mean 'lowbit'?"),
    "grid": (["sweep", "toy", "toy", "--grid", "lr", *QUIET], "--grid 'lr' is refused"),
    "grid name": (["sweep", "toy", "toy", "--grid", "lrr=1,2", *QUIET], "has no parameter 'lrr'"),
    "grid value": (["sweep", "toy", "toy", "--grid", "lr=1,x", *QUIET], "lr = 'x' is refused"),
    "executor": (["sweep", "toy", "toy", "--executor", "ray", *QUIET], "Unknown executor 'ray'"),
    "workers": (["sweep", "toy", "toy", "--workers", "-1", *QUIET], "workers = -1 is refused"),
    "seeds": (["sweep", "toy", "toy", "--seeds", "0", *QUIET], "The sweep has no runs"),
    "data set": (["data", "fetch", "mnits"], "Unknown data set 'mnits'. Did you mean 'mnist'?"),
    "no data set": (["data", "fetch"], "Name a data set to fetch"),
    "study": (["study", "nonsense"], "nonsense"),
    "hardware": (["compare", "--hardware", "v10_like"], "Unknown hardware 'v10_like'. Did you mean 'v100_like'?"),
    "scenario": (["compare", "--scenario", "unfuse"], "Unknown scenario 'unfuse'. Did you mean 'unfused'?"),
    "no joules": (["compare", "--hardware", "eyeriss_like"], "multiples of one multiply-accumulate, not in joules"),
    "preview": (["preview", "toy", "toy", "--set", "lr=0"], "lr = 0 is refused"),
    "preview of what cannot run": (["preview", "toy", "digits/mlp"], "'digits/mlp' is of kind classification"),
    "pages of no profile": (["docs", "nowhere", "--execute", "quik"], "Unknown profile 'quik'. Did you mean 'quick'?"),
    "view": (["views", "workbench", "--view", "tradeoff"], "Unknown view 'tradeoff'. Did you mean 'tradeoffs'?"),
    "metric": (["compare", "--metric", "eval/acuracy"], "Did you mean 'eval/accuracy'?"),
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_a_line_and_code_two(toy, own_home, capsys, words, told):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("workbench: ")
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (own_home / "journals").exists(), "nothing was begun"


def test_a_mistake_in_a_process_of_its_own(toy):
    done = cli("run", "toy", "toy", "--set", "flag=false", *QUIET, code=2)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words", [[], ["run"], ["run", "toy"], ["run", "toy", "toy", "--seed", "one"], ["frobnicate"], ["data", "lists"]]
)
def test_what_cannot_be_parsed_has_code_two(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: workbench" in capsys.readouterr().err


def test_a_missing_data_set_is_told_with_its_remedy(toy, tmp_path, monkeypatch, capsys):
    """Known only when the run begins: the run fails, and its line says which file to put where."""
    for name in ("WORKBENCH_DATA", "WORKBENCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "datasets", None)  # no loader, so no network either
    assert main(["run", "binaryconnect", "mnist/mlp", *QUIET]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Data set 'mnist' is not at hand" in line
    assert "mnist.npz" in line
    assert "'digits/mlp' needs no data" in line
