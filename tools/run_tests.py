"""All that `make test` checks, cheap things first: lint, every notebook in a process of its own, every study in the smoke profile, pytest.

    python tools/run_tests.py [--workers 2] [--only lint notebooks studies pytest]

A notebook is run by nbdev_test, in a process that is forked from one that has imported the packages (au_study.study.warm). Its seconds are remembered
(build/test_seconds.json), so that the next run can start with the slowest and say how long is left.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from lint_notebooks import ROOT, all_notebooks

from au_study.study.warm import start, warm_server

TIMES = ROOT / "build" / "test_seconds.json"
SMOKE = ROOT / "build" / "smoke"  # results of the studies; made anew each time
STAGES = ("lint", "notebooks", "studies", "pytest")
GUESS = {"lint": 20.0, "studies": 300.0, "pytest": 600.0}  # seconds, where nothing was measured yet
NOTEBOOK = 5.0  # the same of a notebook
LIMIT = 600  # seconds after which a notebook is stopped; library notebooks take a few


def remembered() -> dict[str, float]:
    "Seconds of the last run by name."
    try:
        return json.loads(TIMES.read_text())
    except (OSError, ValueError):
        return {}


def remember(times: dict[str, float]) -> None:
    "Keep the seconds for the next run."
    TIMES.parent.mkdir(exist_ok=True)
    TIMES.write_text(json.dumps({name: round(seconds, 1) for name, seconds in sorted(times.items())}, indent=1))


def minutes(seconds: float) -> str:
    "A duration for reading."
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def run_lint(times: dict[str, float], workers: int) -> bool:
    "Lint of all notebooks and of the repository."
    return subprocess.run([sys.executable, "tools/lint_notebooks.py"], cwd=ROOT).returncode == 0


def shared_threads(workers: int) -> dict[str, str]:
    "As many threads for each worker that none waits for a core."
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def notebook_environment(workers: int) -> dict[str, str]:
    "What the process of a notebook sees."
    return os.environ | shared_threads(workers) | {"IN_TEST": "1", "MPLBACKEND": "agg"}


def test_notebook(path: Path, environment: dict[str, str]) -> tuple[bool, str, float]:
    "Whether a notebook's cells all run, what they complained of, and the seconds."
    began, command = time.monotonic(), [sys.executable, "-m", "run_notebook", str(path)]
    with tempfile.TemporaryFile("w+") as log:
        run = start(command, log, ROOT / "tools", environment) or subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT / "tools", env=environment)
        try:
            code, stopped = run.wait(LIMIT), ""
        except subprocess.TimeoutExpired:
            run.kill()
            code, stopped = run.wait(), f"stopped after {LIMIT} s: a notebook in the tests takes seconds\n"
        log.seek(0)
        said = log.read()
    return code == 0 and "No files were eligible" not in said, stopped + said, time.monotonic() - began


def run_notebooks(times: dict[str, float], workers: int) -> bool:
    "Every notebook, slowest first, `workers` at a time."
    paths = {str(p.relative_to(ROOT / "nbs").with_suffix("")): p for p in all_notebooks()}
    waiting = sorted(paths, key=lambda name: -times.get(name, NOTEBOOK))
    environment, failures, done = notebook_environment(workers), {}, 0
    with ThreadPoolExecutor(workers) as pool:
        runs = {pool.submit(test_notebook, paths[name], environment): name for name in waiting}
        for run in as_completed(runs):
            name, (ok, log, seconds) = runs[run], run.result()
            left = sum(times.get(n, NOTEBOOK) for f, n in runs.items() if not f.done()) / workers
            times[name], done = seconds, done + 1
            print(f"  {done:3d}/{len(paths)} {'ok    ' if ok else 'FAILED'} {name} {seconds:.0f} s"
                  + (f" (about {minutes(left)} left)" if done % 5 == 0 and left else ""), flush=True)
            if not ok:
                failures[name] = log
    for name, log in failures.items():
        print(f"\n----- nbs/{name}.ipynb\n{log[-6000:]}")
    print(f"notebooks: {len(paths) - len(failures)} run, {len(failures)} failed")
    return not failures


def lost_cells(tables: Path) -> list[str]:
    "What the ledger of claims asks of the studies' tables and doesn't find there; rates on a GPU need one."
    import pandas as pd

    from au_study.study.claims import NotRun, find_cell, load_claims
    wanted = {(test.study, cell) for claim in load_claims() for test in claim.tests for cell in (test.cell, test.minus_cell) if cell and "cuda" not in " ".join(cell)}
    lost = []
    for study, cell in sorted(wanted):
        try:
            find_cell(pd.read_csv(tables / f"{study}.csv"), cell)
        except (NotRun, FileNotFoundError) as why:
            lost.append(f"{study}: {why}")
    return lost


def run_studies(times: dict[str, float], workers: int) -> bool:
    "Every study of every paper from nothing, in seconds a run: each must end in its table, with the cells that claims look at. The tables are in a log."
    shutil.rmtree(SMOKE, ignore_errors=True)
    SMOKE.mkdir(parents=True)
    command = [sys.executable, "-m", "au_study.study.cli", "reproduce", "--all", "--profile", "smoke", "--results", str(SMOKE), "--cores", str(workers + 1)]     # a fifth of a run is waiting
    with open(SMOKE / "tables.txt", "w") as tables:
        code = subprocess.run(command, cwd=ROOT, stdout=tables).returncode
    made, wanted = {p.stem for p in (SMOKE / "tables").glob("*/*.csv")}, {p.stem for p in (ROOT / "data_manifests" / "studies").glob("*.yaml")}
    print(f"studies: {len(made & wanted)} of {len(wanted)} have a table; exit code {code}")
    if code:
        print((SMOKE / "tables.txt").read_text()[-3000:])
    lost = lost_cells(SMOKE / "tables" / "smoke-world")
    for line in lost:
        print(f"claims: {line}")
    return code == 0 and made >= wanted and not lost


def run_pytest(times: dict[str, float], workers: int) -> bool:
    "pytest, its tests shared out between the workers by files; its closing line is the last that is printed."
    command = [sys.executable, "-m", "pytest", "-q", "--durations=12", "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder", "tests"]
    environment = os.environ | shared_threads(workers)
    with warm_server(TIMES.parent, env=environment) as served:     # for kernels and commands that nobody is going to kill
        return subprocess.run(command, cwd=ROOT, env=environment | served).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="notebooks that run at once (default 2)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run (default all)")
    options = parser.parse_args()
    times, beginning, failed = remembered(), time.monotonic(), []
    expected = {"notebooks": sum(times.get(str(p.relative_to(ROOT / "nbs").with_suffix("")), NOTEBOOK) for p in all_notebooks()) / options.workers}
    expected = {stage: times.get(stage, GUESS.get(stage, expected["notebooks"])) for stage in STAGES} | expected
    with ExitStack() as served:
        if "notebooks" in options.only:     # it imports while lint reads
            os.environ["AU_STUDY_WARM"] = served.enter_context(warm_server(TIMES.parent, env=notebook_environment(options.workers))).get("AU_STUDY_WARM", "")
        for number, stage in enumerate(options.only, 1):
            left = sum(expected[s] for s in options.only[number - 1:])
            print(f"test {number}/{len(options.only)}: {stage} (about {minutes(expected[stage])}; {minutes(left)} to the end)", flush=True)
            began = time.monotonic()
            if not globals()[f"run_{stage}"](times, options.workers):
                failed.append(stage)
            times[stage] = time.monotonic() - began
            remember(times)
            if stage == "notebooks":
                served.close()
                os.environ.pop("AU_STUDY_WARM")
    if failed:
        sys.exit(f"test: FAILED in {', '.join(failed)} after {minutes(time.monotonic() - beginning)}")


if __name__ == "__main__":
    main()
