"""Run notebooks from top to bottom and store their outputs, which the documentation shows.

    python tools/execute_notebooks.py [--workers 2] [NAME ...]      NAME as in nbs, such as faces/10_frames; default: all but the experiments

A notebook that fails keeps the outputs it had.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lint_notebooks import ROOT, all_notebooks, kind_of, read

KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def execute(path: Path) -> float:
    "Run one notebook in a kernel and write it back clean; the seconds it took."
    import nbformat
    from nbclient import NotebookClient
    start = time.monotonic()
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata = KERNEL
    aside = path.with_suffix(".ipynb.new")
    nbformat.write(notebook, aside)
    os.replace(aside, path)
    subprocess.run([sys.executable, "-c", "import sys; from nbdev.clean import nbdev_clean; nbdev_clean(fname=sys.argv[1])", str(path)],
                   cwd=ROOT, check=True)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks, as nbs/faces/10_frames.ipynb or faces/10_frames")
    parser.add_argument("--workers", type=int, default=2, help="notebooks that run at once (default 2)")
    options = parser.parse_args()
    wanted = {name.removeprefix("nbs/").removesuffix(".ipynb") for name in options.names}
    paths = {str(p.relative_to(ROOT / "nbs").with_suffix("")): p for p in all_notebooks()}
    unknown = wanted - set(paths)
    if unknown:
        sys.exit(f"No such notebook: {', '.join(sorted(unknown))}. Known: {', '.join(paths)}.")
    if not wanted:
        wanted = {name for name, path in paths.items() if kind_of(path.relative_to(ROOT), read(path)) != "experiment"}
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["PYTHONWARNINGS"] = "ignore"
    failed = 0
    with ThreadPoolExecutor(options.workers) as pool:
        runs = {pool.submit(execute, paths[name]): name for name in sorted(wanted)}
        for done, run in enumerate(as_completed(runs), 1):
            error = run.exception()
            failed += error is not None
            print(f"{done:3d}/{len(runs)} {runs[run]} " + (f"{run.result():.0f} s" if error is None else f"FAILED\n{error}"), flush=True)
    sys.exit(f"{failed} notebooks failed and keep the outputs they had" if failed else 0)


if __name__ == "__main__":
    main()
