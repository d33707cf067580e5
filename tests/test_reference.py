"Kept batches: what `au-study report --keep` leaves for others, and that it is whole or not there."
import json
import platform

import pandas as pd
import pytest
from test_claims import BASE, BETTER, STUDY, made_store, write

from au_study.study import reference, report
from au_study.study.claims import claims_table, load_claims
from au_study.study.held import held, kept_batches, reference_ledger
from au_study.study.manifests import load_study
from au_study.study.plan import write_plan
from au_study.study.runs import RunStore
from au_study.study.tables import study_table, write_table


def finished(root, seeds=(0,)):
    "A finished batch of one study, two rows and two folds, as a results folder."
    study = load_study(STUDY)
    plan, store = made_store(root, {BASE: 0.3, BETTER: 0.15}, seeds=seeds, people=10)
    (data,) = plan.data
    for run, entry in plan.runs.items():
        protocol = json.loads((root / f"runs/{run}/run.json").read_text())["protocol"]
        entry |= {"label": run, "parent": None, "before": [], "data": data, "rows": [], "parameters": {"protocol": protocol, "out": str(root / "work"), "profile": "quick"}}
        write(root / f"runs/{run}/metrics.json", {"fingerprint": "made", "code": "made", "average": {"f1": 0.5}})
        write(root / f"runs/{run}/timing.json", {"seconds": {"fit": 60.0, "predict": 1.0}})
        write(root / f"runs/{run}/environment.json", {"device": "cpu", "cpus": 2, "threads": 1, "system": "Linux", "python": "3.12.1", "packages": {"torch": "2.9"}, "code": "made"})
    entry = plan.studies.pop("made")
    key = f"{STUDY}-quick-made"
    plan.studies[key] = {**entry, "kind": "scores", "paper": "au_rcnn", "place": study.place, "title": study.title, "notebook": "table", "parameters": {"study": STUDY, "out": str(root)}}
    write_table(study, study_table(study, entry["rows"], store, 100), root / "studies" / key)
    write_plan(plan, root)
    return plan, root


@pytest.fixture
def batch(tmp_path): return finished(tmp_path / "results")


def test_the_command_keeps_a_batch_that_can_be_judged_again(batch, tmp_path, capsys):
    plan, root = batch
    report.main(["--results", str(root), "--keep", str(tmp_path / "kept")])
    kept = tmp_path / "kept/quick-world"
    assert f"{kept}: 0.1 MB" in capsys.readouterr().out and kept_batches(tmp_path / "kept") == [kept]
    machine = json.loads((kept / "machine.json").read_text())
    assert machine["runs"] == [4, 4] and machine["tables"] == [1, 1] and machine["seeds"] == [0] and machine["packages"] == [{"torch": "2.9"}] and machine["computing_seconds"] == 244
    claims = load_claims(["au_rcnn"])
    lines = [claims_table(p, RunStore(r), claims, 2000) for p, r in ((plan, root), (reference.unfold(kept, tmp_path / "again"), tmp_path / "again"))]
    assert lines[0]["effect"].notna().sum() >= 3
    pd.testing.assert_frame_equal(*(t[["id", "verdict", "effect", "low", "high", "p"]] for t in lines))
    assert reference_ledger(tmp_path / "kept")[0] == "quick-world" and "batch `quick-world`" in held("au_rcnn", tmp_path / "kept")


def test_a_batch_with_more_seeds_answers_beside_the_first(batch, tmp_path):
    several, kept = finished(tmp_path / "several", seeds=(0, 1, 2)), {}
    for plan, root in (batch, several):
        judged = claims_table(plan, RunStore(root), load_claims(["au_rcnn"]), 2000)
        kept[len({e["seed"] for e in plan.runs.values()})] = reference.keep(plan, root, tmp_path / "kept", judged)
    assert {n: p.name for n, p in kept.items()} == {1: "quick-world", 3: "quick-world-3-seeds"}
    assert kept_batches(tmp_path / "kept") == [kept[1], kept[3]] and json.loads((kept[3] / "machine.json").read_text())["batch"] == "quick-world-3-seeds"
    name, lines = reference_ledger(tmp_path / "kept")
    alone = pd.read_csv(kept[1] / "claims.csv")
    assert name == "quick-world" and alone["id"].tolist() == lines["id"].tolist()
    tested = alone["effect"].notna()
    assert tested.sum() >= 3 and set(alone.loc[tested, "seeds"]) == {1} and set(lines.loc[tested, "seeds"]) == {3}
    assert "supported" in set(lines["verdict"]) and "supported" not in set(alone.loc[tested, "verdict"])
    assert "agrees (one seed)" in (shown := reference.seeds_beside(kept[1])) and "supported" in shown
    machine = json.loads((kept[3] / "machine.json").read_text())
    write(kept[3] / "machine.json", machine | {"code": ["another"]})          # seeds of other code say nothing about this one
    assert set(reference_ledger(tmp_path / "kept")[1].loc[tested, "seeds"]) == {1} and "No batch with more seeds" in reference.seeds_beside(kept[1])


def test_nothing_kept_tells_where_it_was_made(batch, tmp_path):
    plan, root = batch
    kept = reference.keep(plan, root, tmp_path / "kept")
    text = "".join(p.read_text() for p in kept.rglob("*") if p.suffix in (".json", ".csv", ".md", ".svg"))
    assert str(tmp_path) not in text and (len(platform.node()) < 4 or platform.node() not in text)


def test_a_failure_leaves_what_was_kept_before(batch, tmp_path, monkeypatch):
    plan, root = batch
    kept = reference.keep(plan, root, tmp_path / "kept")
    before = {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()}

    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(reference, "runs_list", full)
    with pytest.raises(OSError, match="No space"): reference.keep(plan, root, tmp_path / "kept")
    assert {p: p.read_bytes() for p in (tmp_path / "kept").rglob("*") if p.is_file()} == before


def test_figures_that_are_large_are_named_and_not_kept(batch, tmp_path):
    plan, root = batch
    (key,) = plan.studies
    (root / f"studies/{key}/figure.png").write_bytes(bytes(reference.SMALL_FIGURE + 1))
    kept = reference.keep(plan, root, tmp_path / "kept")
    assert json.loads((kept / "machine.json").read_text())["left_out"] == [f"{STUDY}.png"]
    (root / f"studies/{key}/figure.svg").write_text("<svg/>")
    assert (reference.keep(plan, root, tmp_path / "kept") / f"tables/{STUDY}.svg").exists()


def test_a_batch_ends_with_its_claims(batch):
    plan, root = batch
    said = report.end_with_claims(plan, root)
    assert said.startswith("Claims tested by these studies: ") and "agrees (one seed)" in said and (root / "claims/quick-world.csv").exists()
    plan.profile = "smoke"
    assert report.end_with_claims(plan, root) == ""
