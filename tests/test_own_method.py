"A method from outside the kit: found beside its study by every process of a batch, told apart from its edited versions, judged by claims of its own."
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from tiny_batch import finished

from au_study.study.own_code import FOLDERS, own_code
from au_study.study.plan import make_plan
from au_study.study.runs import RunStore
from au_study.training.batches import blob_faces

METHOD = """
from parts_of_mine import SHARE
from au_study.training import PriorEstimator


class Half(PriorEstimator):
    def __init__(self, factor=1.0, trainer=None):
        self.factor = factor
        super().__init__(trainer)

    def scores(self, module, batch): return SHARE * self.factor * super().scores(module, batch)


class Bare(PriorEstimator):
    def __init__(self): pass


def sizes_of(context, row="Half"):
    import pandas as pd
    model = context.model(row)
    return pd.DataFrame([(row, "factor", model.factor), (row, "rate", float(model.module_.rate.mean()))], columns=["row", "item", "measured"])
"""
STUDY = """
paper: mine
title: half of the base rate
dataset: blobs
reference: Rate
protocol: {split: blobs-2fold, aus: [4, 12], crop: none}
rows:
  Rate: {estimator: prior}
  Half: {estimator: "half_of_a_test:Half"}
sizes: {small: {"half_of_a_test:Half": {factor: 0.9}}}
"""
FIGURE = STUDY.replace("reference: Rate\n", "kind: analysis\nanalysis: half_of_a_test:sizes_of\n")
CLAIMS = "paper: mine\nclaims: {worse: {where: here, says: Half a base rate never says yes., study: mine.yaml, row: Half, minus: Rate, direction: higher}}\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder as somebody has it at home; nothing of this process finds modules there."
    monkeypatch.setenv("AU_STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(FOLDERS, raising=False)
    home = tmp_path / "home"
    blob_faces(6, 12, seed=1).save(home / "data" / "blobs")
    for name, text in (("half_of_a_test.py", METHOD), ("parts_of_mine.py", "SHARE = 0.5\n"), ("mine.yaml", STUDY), ("figure.yaml", FIGURE), ("claims.yaml", CLAIMS),
                       ("small.yaml", "title: two folds\nn_boot: 50\n")): (home / name).write_text(text)
    yield home
    for name in ("half_of_a_test", "parts_of_mine"): sys.modules.pop(name, None)
    sys.path[:] = [p for p in sys.path if p != str(home)]


def command(place, *words):
    "The command line, in a process of its own and another folder."
    return finished([sys.executable, "-m", "au_study.study.cli", *words, "--profile", str(place / "small.yaml"), "--data", str(place / "data"), "--results", str(place / "results")],
                    place.parent, dict(os.environ))


def plan_of(place, study="mine.yaml"): return make_plan([place / study], place / "small.yaml", str(place / "data"), place / "results")


def test_a_batch_makes_its_row_and_a_claim_judges_it(place):
    done = command(place, "reproduce", str(place / "mine.yaml"), str(place / "figure.yaml"), "--cores", "2")
    assert done.returncode == 0, done.stdout
    assert "| Half " in done.stdout and "vs Rate" in done.stdout and "0.9" in done.stdout
    store, plan = RunStore(place / "results"), plan_of(place)
    own = [name for name, e in plan.runs.items() if "Half" in e["label"]]
    assert {plan.runs[r]["parameters"]["params"]["factor"] for r in own} == {0.9} and all(map(store.done, plan.runs))
    run = own[0]
    assert store.read(run, "run")["code"] == plan.runs[run]["parameters"]["code"] != ""
    said = command(place, "claims", str(place / "claims.yaml"))
    assert said.returncode == 0 and "Half a base rate never says yes." in said.stdout and "1 claims, 1 lines" in said.stdout and "not run" not in said.stdout, said.stdout


PARTS = """
from half_of_a_test import Half
from au_study.training import PriorEstimator, Trainer
from au_study.training.batches import blob_faces

class Patient(Trainer): "A part of one's own in a method of the kit."

if __name__ == "__main__":
    import json, patient
    from pathlib import Path
    for name, model in (("half", Half()), ("prior", PriorEstimator(patient.Patient()))):
        model.fit(blob_faces()).save(Path("trained") / name / "weights")
        Path("trained", name, "run.json").write_text(json.dumps({"id": name, "estimator": "half_of_a_test:Half" if name == "half" else "prior"}))
"""
OPEN = "import sys; from au_study.study.detect import open_run; print(*[type(p).__name__ for f in sys.argv[1:] for m in [open_run(f).model] for p in (m, m.trainer_in_use())])"


def test_a_trained_model_of_ones_own_is_opened_by_another_process(place):
    def python(*words, **more): return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=place, env={**os.environ, "PYTHONSAFEPATH": "1", **more})
    (place / "patient.py").write_text(PARTS)
    made = python("patient.py", PYTHONPATH=os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))
    assert made.returncode == 0, made.stderr
    opened = python("-c", OPEN, "trained/half", "trained/prior", "trained/half/weights", **{FOLDERS: str(place)})
    assert opened.stdout.split() == ["Half", "Trainer", "PriorEstimator", "Patient", "Half", "Trainer"], opened.stderr
    alone = python("-c", OPEN, "trained/prior")
    assert alone.returncode and "OwnCodeError" in alone.stderr and "there is no module 'patient'" in alone.stderr


def test_an_edited_method_is_another_run(place):
    first = plan_of(place)
    figures = set(plan_of(place, "figure.yaml").studies)
    (place / "parts_of_mine.py").write_text("SHARE = 0.4\n")
    second = plan_of(place)
    kept = set(first.runs) & set(second.runs)
    assert {first.runs[r]["label"] for r in kept} == {"prior"} and len(kept) == len(first.runs) / 2
    assert not figures & set(plan_of(place, "figure.yaml").studies)
    (place / "parts_of_mine.py").write_text("SHARE = 0.5\n")
    assert set(plan_of(place).runs) == set(first.runs)


def test_the_kit_beside_a_module_is_not_the_method(place):
    make = plan_of(place)
    (place / "au_study").mkdir()
    (place / "au_study" / "__init__.py").write_text("")
    assert set(plan_of(place).runs) == set(make.runs)


@pytest.mark.parametrize("row, said", [
    ('{estimator: "half_of_a_test:Halve"}', "mine, row Half: half_of_a_test:Halve: the module has no 'Halve'; did you mean 'Half'?"),
    ('{estimator: "half_of_my_test:Half"}', "there is no module 'half_of_my_test' in "),
    ('{estimator: "half_of_a_test:Half", params: {facto: 2}}', "mine, row Half: estimator half_of_a_test:Half: unknown key 'facto'; did you mean 'factor'?"),
    ('{estimator: "half_of_a_test:sizes_of"}', "half_of_a_test:sizes_of is no estimator"),
    ('{estimator: "half_of_a_test:Bare"}', "half_of_a_test:Bare has no parameter `trainer`; write `def __init__(self, ..., trainer=None)`"),
    ('{estimator: "half_of_a_test:Half"}\nsizes: {quick: {"half_of_a_test:Half": {facto: 2}}}', "mine, sizes of quick: estimator half_of_a_test:Half: unknown key 'facto'; did you mean 'factor'?"),
    ('{estimator: "half_of_a_test:Half"}\nsizes: {small: {au_rcnn: {}}}', "sizes of small: unknown key 'au_rcnn'")])
def test_faults_are_said_before_anything_runs(place, row, said):
    (place / "mine.yaml").write_text(STUDY.partition("  Half:")[0] + f"  Half: {row}\n")
    with pytest.raises(ValueError) as error: plan_of(place)
    assert said in str(error.value)


def test_sizes_for_a_profile_that_is_not_there_are_noted(place, capsys):
    for name, said in (("quikc", "mine has sizes for a profile 'quikc', of which there is none here; 'quick' was perhaps meant"), ("evening", "")):     # `evening` may be somebody's own, elsewhere
        (place / "mine.yaml").write_text(STUDY.replace("sizes: {small:", f"sizes: {{{name}:"))
        assert plan_of(place).runs
        printed = capsys.readouterr().out
        assert said in printed and bool(said) == ("Note" in printed)


def test_the_papers_methods_have_no_code_of_their_own():
    assert {own_code(e.load()) for e in entry_points(group="au_study.estimators") if e.value.startswith("au_study.")} == {""}
    assert FOLDERS not in os.environ or os.environ[FOLDERS]
