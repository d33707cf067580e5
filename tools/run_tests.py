"""All that `make test` checks, cheap things first: lint, every notebook in a process of its own, pytest.

    python tools/run_tests.py [--workers 2] [--only lint notebooks pytest]

A notebook is run by nbdev_test. Its seconds are remembered (build/test_seconds.json), so that the next run can start with the
slowest and say how long is left.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lint_notebooks import ROOT, all_notebooks

TIMES = ROOT / "build" / "test_seconds.json"
STAGES = ("lint", "notebooks", "pytest")
GUESS = {"lint": 30.0, "pytest": 120.0}  # seconds, where nothing was measured yet; 8 for a notebook
LIMIT = 600  # seconds after which a notebook is stopped; library notebooks take a few
RUN_ONE = "import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0)"


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


def test_notebook(path: Path, threads: int) -> tuple[bool, str, float]:
    "Whether a notebook's cells all run, what they complained of, and the seconds."
    start = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "IN_TEST": "1", "MPLBACKEND": "agg"}
    try:
        run = subprocess.run([sys.executable, "-c", RUN_ONE, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, env=environment)
        ok, log = run.returncode == 0 and "No files were eligible" not in run.stdout, run.stdout + run.stderr
    except subprocess.TimeoutExpired as error:
        ok, log = False, f"stopped after {LIMIT} s: a notebook in the tests takes seconds\n{error.stderr or ''}"
    return ok, log, time.monotonic() - start


def run_notebooks(times: dict[str, float], workers: int) -> bool:
    "Every notebook, slowest first, `workers` at a time."
    paths = {str(p.relative_to(ROOT / "nbs").with_suffix("")): p for p in all_notebooks()}
    waiting = sorted(paths, key=lambda name: -times.get(name, 8.0))
    threads = max(1, (os.cpu_count() or 1) // workers)
    failures, done = {}, 0
    with ThreadPoolExecutor(workers) as pool:
        runs = {pool.submit(test_notebook, paths[name], threads): name for name in waiting}
        for run in as_completed(runs):
            name, (ok, log, seconds) = runs[run], run.result()
            left = sum(times.get(n, 8.0) for f, n in runs.items() if not f.done()) / workers
            times[name], done = seconds, done + 1
            print(f"  {done:3d}/{len(paths)} {'ok    ' if ok else 'FAILED'} {name} {seconds:.0f} s"
                  + (f" (about {minutes(left)} left)" if done % 5 == 0 and left else ""), flush=True)
            if not ok:
                failures[name] = log
    for name, log in failures.items():
        print(f"\n----- nbs/{name}.ipynb\n{log[-6000:]}")
    print(f"notebooks: {len(paths) - len(failures)} run, {len(failures)} failed")
    return not failures


def run_pytest(times: dict[str, float], workers: int) -> bool:
    "pytest; its closing line is the last that is printed."
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--durations=8", "tests"], cwd=ROOT).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="notebooks that run at once (default 2)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run (default all)")
    options = parser.parse_args()
    times, start, failed = remembered(), time.monotonic(), []
    expected = {"notebooks": sum(times.get(str(p.relative_to(ROOT / "nbs").with_suffix("")), 8.0) for p in all_notebooks()) / options.workers}
    expected = {stage: times.get(stage, GUESS.get(stage, expected["notebooks"])) for stage in STAGES} | expected
    for number, stage in enumerate(options.only, 1):
        left = sum(expected[s] for s in options.only[number - 1:])
        print(f"test {number}/{len(options.only)}: {stage} (about {minutes(expected[stage])}; {minutes(left)} to the end)", flush=True)
        began = time.monotonic()
        if not globals()[f"run_{stage}"](times, options.workers):
            failed.append(stage)
        times[stage] = time.monotonic() - began
        remember(times)
    if failed:
        sys.exit(f"test: FAILED in {', '.join(failed)} after {minutes(time.monotonic() - start)}")


if __name__ == "__main__":
    main()
