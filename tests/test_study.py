"The study harness across notebooks: ids, store, writers, parameters, and a training that is stopped and goes on."
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from tiny_batch import TINY

from au_study.files import Busy, claim, publish
from au_study.training.batches import blob_faces
from au_study.scoring.metrics import metric_of
from au_study.study.batch import check_notebooks
from au_study.study.launch import UnknownParameter, check_parameters
from au_study.study.manifests import ManifestError, load_study, study_names
from au_study.study.plan import make_plan
from au_study.study.protocol import ProtocolMismatch, one_protocol, protocol_of
from au_study.study.runs import FILES, RunStore, fold_numbers, make_run, parent_of
from au_study.study.tables import published_values

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
SPEC = {"source": "folder", "dataset": "blobs", "fingerprint": "0", "resolution": 1.0}
RULES = protocol_of({"split": "blobs-2fold", "aus": [4, 12], "crop": "none"})


def run(**changes):
    given = {"estimator": TINY, "params": {"seconds": 0.5}, "data": SPEC, "protocol": RULES, "fold": 0, "seed": 0, "profile": "smoke", **changes}
    return make_run(**given)


# --- ids ---------------------------------------------------------------------------------------------------------------------------

def test_run_id_is_the_same_in_another_process():
    code = ("import sys; sys.path[:0] = [%r]; import test_study as t; print(t.run().id)" % str(HERE))
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout.strip() == run().id


@pytest.mark.parametrize("changes", [
    {"estimator": "prior", "params": {}}, {"params": {"seconds": 0.6}}, {"params": {"seconds": 0.5, "trainer__epochs": 9}}, {"params": {"seconds": 0.5, "shift": 1.0}},
    {"data": {**SPEC, "fingerprint": "1"}}, {"data": {**SPEC, "resolution": 0.5}}, {"fold": 1}, {"seed": 1}, {"profile": "quick"},
    *({"protocol": replace(RULES, **d)} for d in ({"split": "x"}, {"aus": (4,)}, {"threshold": 2}, {"crop": "paper"}, {"score_threshold": 0.4}, {"selection": "last"}))])
def test_run_id_is_sensitive_to_every_field(changes):
    assert run(**changes).id != run().id


@pytest.mark.parametrize("params", [{"seconds": 0.5, "shift": 0.0}, {"seconds": 0.5, "trainer": {"epochs": 3}}, {"seconds": 0.5, "trainer__threads": 7}])
def test_run_id_ignores_what_changes_nothing(params):
    assert run(params=params).id == run().id


def test_unknown_estimator_parameter_is_an_error():
    with pytest.raises(ManifestError, match="did you mean 'seconds'"): run(params={"secnods": 1})


# --- store -------------------------------------------------------------------------------------------------------------------------

def test_store_shows_a_run_whole_or_not_at_all(tmp_path):
    store, staged = RunStore(tmp_path), tmp_path / "work/runs/a/out"
    staged.mkdir(parents=True)
    for name in FILES[:-1]: (staged / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="weights missing"): publish(staged, store.path("a"), FILES)
    assert not store.path("a").exists() and store.state("a") == "missing"
    (staged / "weights").mkdir()
    publish(staged, store.path("a"), FILES)
    assert store.state("a") == "done" and not staged.exists()
    staged.mkdir(parents=True)
    (staged / "x").write_text("")
    with pytest.raises(OSError): publish(staged, store.path("a"))
    assert {p.name for p in store.path("a").iterdir()} == set(FILES)


def test_two_writers_never_meet(tmp_path):
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", f"import time; from au_study.files import claim\nwith claim({str(lock)!r}): print('held', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {holder.pid}"):
            with claim(lock): pass
        holder.kill()
        holder.wait()
        with claim(lock, wait=5): pass      # the system released it
    finally:
        holder.kill()


# --- parameters and manifests ------------------------------------------------------------------------------------------------------

def test_unknown_notebook_parameter_is_an_error(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("fold = 0", metadata={"tags": ["parameters"]})],
                                           metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    check_parameters(tmp_path / "a.ipynb", ["fold"])
    with pytest.raises(UnknownParameter, match="did you mean 'fold'"): check_parameters(tmp_path / "a.ipynb", ["flod"])
    del notebook.cells[0].metadata["tags"]
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(UnknownParameter, match="no cell is tagged"): check_parameters(tmp_path / "a.ipynb", ["fold"])


def test_every_study_plans_and_fits_its_notebooks(tmp_path):
    plan = make_plan(study_names(), "smoke", results=tmp_path)
    check_notebooks(plan)
    shared = [r for r in plan.runs.values() if len({row.split("/")[0] for row in r["rows"]}) > 1]
    assert len(shared) >= 2, "Tables 5 and 6 of AU R-CNN share their 512-pixel runs"


def test_every_row_has_its_published_numbers():
    for name in study_names():
        study = load_study(name)
        for row in study.rows if study.kind == "scores" and study.table is not None else ():
            printed, metric = published_values(study, row), metric_of(study.metric)
            if not printed: assert row.estimator and not row.published, f"{name}, {row.name}: quoted, but not printed"; continue   # a row of ours
            dashes = 0 if row.estimator else 1   # a method of another group may lack an AU
            by_au = metric.lead == "Avg" and set(printed) != {"Avg"}   # some tables print averages alone
            items = {f"AU{a}" for a in study.protocol["aus"]} if by_au else set()
            assert metric.lead in printed and len(items - set(printed)) <= dashes, f"{name}, {row.name}"


@pytest.mark.parametrize("file", ["claims/aunet.yaml", "published/methods.yaml"])
def test_the_noise_floor_is_measured_against_what_is_printed_and_claimed_now(tmp_path, monkeypatch, file):
    shutil.copytree(HERE.parent / "data_manifests", tmp_path / "data_manifests")
    monkeypatch.setenv("AU_STUDY_ROOT", str(tmp_path))
    def keys(name): return set(make_plan([name], "smoke", results=tmp_path).studies)
    before = {name: keys(name) for name in ("evidence_noise_floor", "au_rcnn_table14")}
    with open(tmp_path / "data_manifests" / file, "a") as f: f.write("# edited\n")
    assert [keys(name) == found for name, found in before.items()] == [False, True]


def test_logits_are_no_scores():
    faces = blob_faces(2, 6)
    scores = faces.frames[["subject", "video", "frame", "AU4", "AU12"]].fillna(0.)
    assert len(fold_numbers(None, faces, scores, RULES)) == 3
    with pytest.raises(ValueError, match="gave scores from -0.10 to 1.00; `scores` must give probabilities .*logits go through"): fold_numbers(None, faces, scores.replace({"AU4": {0.: -.1}}), RULES)


def test_protocols_do_not_mix():
    with pytest.raises(ProtocolMismatch, match="threshold: 1.0 / 2"): one_protocol([RULES, replace(RULES, threshold=2)])


# --- predict-only ------------------------------------------------------------------------------------------------------------------

def test_predict_only_parameters_share_a_training(tmp_path):
    child = run(params={"seconds": 0.5, "shift": 2.0})
    assert parent_of(child).id == run().id and parent_of(run()) is None
    mean = run(estimator="au_rcnn", params={"test_boxes": "mean"})
    assert parent_of(mean).id == run(estimator="au_rcnn", params={}).id


def test_a_row_trained_elsewhere_is_a_child_of_the_run_at_home(tmp_path):
    (tmp_path / "cross.yaml").write_text("""
paper: au_rcnn
title: trained elsewhere
dataset: disfa
protocol: {split: disfa-3fold, aus: [1, 12]}
rows:
  home: {estimator: prior}
  from_bp4d: {estimator: prior, train_on: {dataset: bp4d, protocol: {split: bp4d-3fold, aus: [1, 6, 12]}}}
  from_both: {estimator: prior, train_on: {datasets: [bp4d, disfa], protocol: {split: mixed, aus: [1, 6, 12]}}}
""")
    plan = make_plan([tmp_path / "cross.yaml"], "smoke", results=tmp_path)
    by_row = {e["rows"][0]: e for e in plan.runs.values() if e["rows"]}
    home = {r: plan.runs[by_row[f"cross/{r}"]["parent"]] for r in ("from_bp4d", "from_both")}
    assert by_row["cross/home"]["parent"] is None and home["from_bp4d"]["dataset"] == "bp4d" and home["from_both"]["dataset"] == "bp4d_disfa"
    assert {e["dataset"] for e in by_row.values()} == {"disfa"} and plan.data[home["from_both"]["data"]]["spec"]["held_out"] == "disfa"
    (tmp_path / "cross.yaml").write_text((tmp_path / "cross.yaml").read_text().replace("dataset: bp4d", "dataset: affwild2"))   # one fold
    with pytest.raises(ManifestError, match="trained on 1 folds of affwild2 and tested on 3 of disfa"): make_plan([tmp_path / "cross.yaml"], "smoke", results=tmp_path)


# --- a killed training ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def stopped(tmp_path, monkeypatch):
    "A training of twelve steps that was stopped after five, a checkpoint behind each, and a function that calls it again: steps that were trained, seconds."
    import tiny_estimator
    from au_study.study import runs
    steps, loss, faces = [], tiny_estimator.Tiny.loss, {seed: blob_faces(6, 20, seed=seed).fold(0) for seed in (1, 2)}
    def counted(self, module, batch):
        steps.append(time.sleep(0.05))
        if len(steps) == stopped_at: raise KeyboardInterrupt
        return loss(self, module, batch)
    monkeypatch.setattr(tiny_estimator.Tiny, "loss", counted)
    def again(seed=1, limit=0):
        nonlocal stopped_at
        steps.clear(); stopped_at = limit
        watch = runs.Stopwatch()
        with watch("fit"): runs.fit_run(run(params={"trainer__batch_size": 27, "trainer__selection": "last"}, protocol=replace(RULES, selection="last")),
                                        *faces[seed], tmp_path, RunStore(tmp_path), watch=watch)
        return len(steps), watch.seconds["fit"]
    stopped_at = 0
    with pytest.raises(KeyboardInterrupt): again(limit=6)
    return again


def test_a_killed_training_goes_on_and_costs_what_both_processes_spent(stopped):
    steps, seconds = stopped()
    assert steps == 7 and seconds > 12 * 0.05
    steps, seconds = stopped()          # killed between the training and its result
    assert steps == 0 and seconds > 12 * 0.05


def test_a_killed_training_begins_again_under_other_code_and_on_other_data(stopped, monkeypatch):
    monkeypatch.setattr("au_study.study.runs.code_hash", lambda: "edited")
    assert stopped()[0] == 12
    assert stopped(seed=2)[0] == 12      # the same run where the pixels of a world changed: no checkpoint of other data is in its way


def test_a_run_is_named_by_the_code_that_was_imported():
    "Not by an edit that is made while it trains."
    code = "import au_study.study.runs as r; assert r.code_hash.cache_info().currsize == 1"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
