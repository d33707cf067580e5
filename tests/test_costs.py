"What a batch will cost: from made timings to the sentence that is said before it starts."
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from au_study.study import costs
from au_study.study.batch import announce
from au_study.study.costs import COLUMNS, cost_table, estimate
from au_study.study.plan import Plan, make_plan, read_plan
from au_study.study.runs import RunStore
from au_study.training.batches import blob_faces

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tools")]
import timings as tool  # noqa: E402

STUDY = """
paper: au_rcnn
title: a tiny batch
dataset: blobs
protocol: {split: blobs-2fold, aus: [4, 12], crop: none}
rows:
  plain: {estimator: "tiny_estimator:Tiny"}
  shifted: {estimator: "tiny_estimator:Tiny", params: {shift: 0.5}}
"""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    "Two tables that share their runs: two trainings, and two runs that predict with their weights. Two cores elsewhere are the reference."
    monkeypatch.setattr(costs, "reference_path", lambda: tmp_path / "timings.csv")
    blob_faces(6, 4).save(tmp_path / "data/blobs")
    for name in ("one", "two"): (tmp_path / f"{name}.yaml").write_text(STUDY)
    (tmp_path / "small.yaml").write_text("title: two folds\n")
    return make_plan([tmp_path / "one.yaml", tmp_path / "two.yaml"], tmp_path / "small.yaml", str(tmp_path / "data"), tmp_path / "results"), RunStore(tmp_path / "results")


def note(store, kind, seconds, name, **more):
    store.root.mkdir(exist_ok=True)
    with open(store.root / "timings.jsonl", "a") as f: f.write(json.dumps({"kind": kind, "id": f"{name}-0", "seconds": seconds, **more}) + "\n")


def note_run(store, seconds, trains): note(store, "runs", seconds, "x", label="tiny_estimator.Tiny", dataset="blobs", profile="small", trains=trains)


def bring(tmp_path, *lines):
    pd.DataFrame([{**dict.fromkeys(COLUMNS, ""), "n": 1, "machine": "two cores elsewhere", **l} for l in lines]).to_csv(tmp_path / "timings.csv", index=False)


def line(seconds, trains, label="tiny_estimator.Tiny"): return {"kind": "runs", "name": label, "dataset": "blobs", "profile": "small", "trains": trains, "seconds": seconds}


def test_nothing_known_is_said_so(planned):
    said = announce(*planned, 2)
    assert "2 studies need 4 runs (2 trainings, 2 that reuse another run's weights). 4 of them serve several tables; without that, 8 runs would be needed." in said
    assert said.endswith("Time, 2 at a time: not known before the first run is done.")


def test_a_fresh_folder_takes_the_reference_and_says_whose_it_is(planned, tmp_path):
    bring(tmp_path, line(600.0, True), line(60.0, False), line(9000.0, True, "aunet"))
    found = estimate(*planned, 1)
    assert found.seconds == 2 * 600 + 2 * 60 + 3 * costs.UNSEEN       # runs, one data record, two tables
    assert announce(*planned, 1).endswith("Time, 1 at a time: about 22 min, guessed from timings that come with the kit (two cores elsewhere).")
    assert estimate(*planned, 100).seconds == 600 + 60 + 2 * costs.UNSEEN      # the chain: data, training, prediction, table


def test_own_timings_replace_the_reference_and_set_its_pace(planned, tmp_path):
    bring(tmp_path, line(600.0, True), line(60.0, False))
    note_run(planned[1], 300.0, True)    # this machine is twice as fast ...
    assert estimate(*planned, 1).seconds == pytest.approx(2 * 300 + 2 * 30 + 3 * costs.UNSEEN)     # ... in what it hasn't done yet, too
    note_run(planned[1], 20.0, False)
    assert estimate(*planned, 1).seconds == pytest.approx(2 * 300 + 2 * 20 + 3 * costs.UNSEEN)
    assert "2 timings of this folder" in estimate(*planned, 1).basis


def test_time_left_shrinks_with_what_is_done_and_what_runs(planned):
    plan, store = planned
    note_run(store, 100.0, True)
    note_run(store, 10.0, False)
    whole = estimate(plan, store, 1).seconds
    training = next(r for r, e in plan.runs.items() if e["parent"] is None)
    assert estimate(plan, store, 1, {training: 40.0}).seconds == whole - 40
    assert estimate(plan, store, 1, {training: 4000.0}).seconds == whole - 99      # late, but not done
    store.path(training).mkdir(parents=True)
    assert estimate(plan, store, 1).seconds == whole - 100
    assert cost_table(plan, store)["missing"].tolist() == [3, 3]


def test_done_runs_and_missing_tables_still_take_time(planned):
    plan, store = planned
    for kind in ("data", "runs"):
        for name in getattr(plan, kind): (store.root / kind / name).mkdir(parents=True)
    assert "to be made: 0 runs, 2 tables. Time, 2 at a time: about 10 s" in announce(plan, store, 2)
    for name in plan.studies: (store.root / "studies" / name).mkdir(parents=True)
    assert "Time" not in announce(plan, store, 2)


def test_the_tool_keeps_the_latest_and_replaces_equal_lines(planned, tmp_path, capsys):
    store = planned[1]
    note(store, "runs", 50.0, "a", label="t", dataset="blobs", profile="small")
    note(store, "runs", 70.0, "a", label="t", dataset="blobs", profile="small")      # the same run, made again
    note(store, "runs", 90.0, "b", label="t", dataset="blobs", profile="small")
    (store.path("b-0") / "weights").mkdir(parents=True)
    (store.path("b-0") / "weights/parent.json").write_text("{}")
    bring(tmp_path, line(600.0, True), {**line(1.0, True), "name": "t"})
    tool.main([str(store.root), "--machine", "here"])
    table = pd.read_csv(tmp_path / "timings.csv").set_index(["name", "trains"])
    assert table["seconds"].to_dict() == {("t", False): 90.0, ("t", True): 70.0, ("tiny_estimator.Tiny", True): 600.0}
    assert table.loc[("t", True), "machine"] == "here" and "2 lines from 1 folder(s), 3 in all" in capsys.readouterr().out


def test_the_reference_of_the_kit_is_whole():
    lines = costs.reference_timings()
    assert len(lines) > 100 and all(t["seconds"] > 0 and t["machine"] for t in lines)
    assert len({(t["kind"], t["label"], t["dataset"], t["profile"], t["trains"]) for t in lines}) == len(lines)


def test_plans_of_other_versions_can_be_read(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"name": "a", "profile": "quick", "source": "world", "minutes": 14}))
    assert read_plan(tmp_path / "old.json") == Plan("a", "quick", "world")
