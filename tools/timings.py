"""Write the durations that come with the kit, data_manifests/profiles/timings.csv, from the records of results folders.

    python tools/timings.py results --machine "two cores of a cloud machine (AMD EPYC)"

Lines about the same kind of run, data set or table are replaced, the others stay; --fresh begins an empty file.
"""
import argparse
from pathlib import Path

import pandas as pd

from au_study.files import whole_file
from au_study.study import costs
from au_study.study.costs import COLUMNS, read_timings, summarise


def with_trains(timing: dict, results: Path) -> dict:
    "Say of a run whether it trained, where its record does not: one that only predicts keeps its parent's name with its weights."
    if timing["kind"] != "runs" or "trains" in timing: return timing
    return {**timing, "trains": not (results / "runs" / timing["id"] / "weights" / "parent.json").exists()}


def latest(timings: list) -> list:
    "The last record of each id: what was made again was made with what holds now."
    return list({(t["kind"], t["id"]): t for t in timings}.values())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results folders with a timings.jsonl")
    parser.add_argument("--machine", required=True, help="where they were measured, in a few words")
    parser.add_argument("--fresh", action="store_true", help="forget what the file holds")
    args = parser.parse_args(argv)
    lacking = [str(r) for r in args.results if not (r / "timings.jsonl").exists()]
    if lacking: parser.error(f"no timings.jsonl in {', '.join(lacking)}")
    new = summarise([with_trains(t, r) for r in args.results for t in latest(read_timings(r))], args.machine)
    path, keys = costs.reference_path(), list(COLUMNS[:5])
    old = pd.read_csv(path, keep_default_na=False, dtype={"trains": str}) if path.exists() and not args.fresh else new[:0]
    both = pd.concat([old, new]).astype({"trains": str}).drop_duplicates(keys, keep="last").sort_values(keys)
    with whole_file(path) as aside: both.to_csv(aside, index=False)
    print(f"{path.name}: {len(new)} lines from {len(args.results)} folder(s), {len(both)} in all")


if __name__ == "__main__": main()
