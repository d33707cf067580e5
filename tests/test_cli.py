"The command line: what it imports, how it fails, where data sets lie, and that studies take them by name."
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from au_study.faces.faceset import FaceSet
from au_study.study.cli import COMMANDS, main, make_parser, mendable
from au_study.study.config import Known, add_set, config_folder, known_sets, open_known
from au_study.study.data import data_folds, data_spec, full_labels, named_sets, open_data, prepare_known, prepared_folder, record_data
from au_study.study.manifests import ManifestError, load_profile, load_study
from au_study.study.plan import make_plan, make_ready
from au_study.study.statistics import statistics_table
from au_study.training.batches import blob_faces


@pytest.fixture(autouse=True)
def own_config(tmp_path, monkeypatch):
    "Configuration, cache and results of this test alone."
    for name, folder in (("XDG_CONFIG_HOME", "config"), ("AU_STUDY_CACHE", "cache"), ("AU_STUDY_RESULTS", "results")): monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("AU_STUDY_TRACEBACK", raising=False)


def bp4d_faces(synthetic=True, subjects=6):
    "Blobs that call themselves BP4D."
    faces = blob_faces(subjects, 8, seed=1)
    return FaceSet(faces.frames, faces.crops, faces.landmarks, replace(faces.card, name="bp4d", title="blobs", synthetic=synthetic))


STUDY = "paper: au_rcnn\ntable: 14\ntitle: t\ndataset: bp4d\nkind: statistics\nstatistic: segments\nprotocol: {split: all-frames, aus: [4, 12], threshold: 1}\n"


# --- commands and imports ------------------------------------------------------------------------------------------------------------

def loaded(code):
    "Modules that a fresh interpreter has after some code."
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_list_of_commands_imports_none_of_them():
    modules = loaded("from au_study.study.cli import make_parser; make_parser().format_help()")
    assert not modules & {c.module for c in COMMANDS.values()} and not modules & {"torch", "cv2", "dlib", "matplotlib"}


def test_a_help_page_imports_its_own_command_only():
    modules = loaded("from au_study.study.cli import make_parser; make_parser('data').format_help()")
    assert "au_study.study.config" in modules and "au_study.study.detect" not in modules and "torch" not in modules


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_page(name, capsys):
    with pytest.raises(SystemExit) as end: main([name, "--help"])
    assert end.value.code == 0 and f"au-study {name}" in capsys.readouterr().out
    assert make_parser(name).parse_args is not None and COMMANDS[name].help[0].islower()


def test_version(capsys):
    with pytest.raises(SystemExit): main(["--version"])
    assert capsys.readouterr().out.startswith("au_study ")


# --- errors --------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, words", [
    (["reproduce", "au_rcnn_table55"], "did you mean"), (["reproduce", "--all", "au_rcnn_table5"], "not both"), (["reproduce", "--cores", "0"], "at least 1"),
    (["reproduce", "--profile", "quik"], "no profile 'quik'"), (["reproduce", "--data", "bp4d"], "`au-study data add bp4d ROOT`"), (["reproduce", "--data", "bp4d,disfa"], "where bp4d, disfa lies"),
    (["reproduce", "--data", "nowhere"], "no such folder"), (["world", "bp4d", "--frames", "3"], "without --out DIR"), (["world", "bp4d", "--out", "x", "--layout", "y"], "no layout 'y'"),
    (["stats", "nothing.csv"], "no frame table"), (["stats", "bp5d", "."], "did you mean 'bp4d'"), (["stats", "bp4d"], "give its root"), (["check", "bp4d", "nothing"], "not there"),
    (["data", "add", "bp4d", "nothing"], "no folder"), (["data", "remove", "bp4d"], "isn't known"), (["detect", "nothing.mp4", "--run", "x", "--out", "a.csv"], "Check the path"),
    (["prepare", "bp4d", "nothing", "--out", "x"], "not there")])
def test_mistakes_end_in_one_sentence(call, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(call) == 2
    err = capsys.readouterr().err
    assert words in err and err.startswith("au-study: ") and "Traceback" not in err


def test_unknown_commands_and_options(capsys):
    for call, words in ((["chek"], "did you mean 'check'"), (["stats"], "SOURCE"), (["status", "--verbos-e"], "unrecognized")):
        with pytest.raises(SystemExit) as end: main(call)
        assert end.value.code == 2 and words in capsys.readouterr().err


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("AU_STUDY_TRACEBACK", "1")
    with pytest.raises(ManifestError): main(["reproduce", "au_rcnn_table55"])


def test_faults_of_the_kit_are_not_hidden(monkeypatch):
    def broken(args): raise KeyError("a fault")
    monkeypatch.setattr("au_study.study.status.run", broken)
    with pytest.raises(KeyError): main(["status"])
    assert mendable(PermissionError(13, "Permission denied", "x")) and not mendable(ZeroDivisionError())


# --- where data sets lie -------------------------------------------------------------------------------------------------------------

def test_data_sets_are_added_listed_and_removed(tmp_path, capsys):
    bp4d_faces().save(tmp_path / "faces")
    assert main(["data", "add", "bp4d", str(tmp_path / "faces")]) == 0
    assert known_sets()["bp4d"].counts["subjects"] == 6
    assert main(["data", "list"]) == 0 and "bp4d" in capsys.readouterr().out
    assert main(["data", "add", "disfa", str(tmp_path / "faces")]) == 2 and "not of 'disfa'" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["data", "add", "bp4d", str(tmp_path / "empty")]) == 2 and "no labels" in capsys.readouterr().err
    assert main(["data", "add", "disfb", str(tmp_path / "empty")]) == 2 and "did you mean 'disfa'" in capsys.readouterr().err
    assert known_sets()["bp4d"].kind == "faceset"                 # failed calls changed nothing
    assert main(["data", "remove", "bp4d"]) == 0 and not known_sets() and (tmp_path / "faces").is_dir()


def test_a_damaged_configuration_says_what_to_do(capsys):
    config_folder().mkdir(parents=True)
    (config_folder() / "data.json").write_text("{")
    assert main(["data", "list"]) == 2
    assert "delete it" in capsys.readouterr().err


def test_the_configuration_is_whole_or_absent(tmp_path, monkeypatch):
    bp4d_faces().save(tmp_path / "faces")
    add_set("bp4d", tmp_path / "faces")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError): add_set("bp4d", tmp_path / "faces")
    monkeypatch.undo()
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    assert list(known_sets()) == ["bp4d"] and len(list(config_folder().iterdir())) == 1


# --- studies take them ---------------------------------------------------------------------------------------------------------------

def test_a_known_faceset_stands_for_its_data_set_and_the_world_for_others(tmp_path):
    bp4d_faces().save(tmp_path / "sets" / "bp4d")
    add_set("bp4d", tmp_path / "sets" / "bp4d")
    smoke = load_profile("smoke")
    spec = data_spec("bp4d", smoke, "bp4d")
    assert spec == data_spec("bp4d", smoke, str(tmp_path / "sets")) and spec["source"] == "folder"     # named or by folder: the same runs
    assert open_data(spec, "bp4d").fingerprint == spec["fingerprint"] and data_folds(spec, "bp4d") == len(bp4d_faces().card.folds)
    assert data_spec("disfa", smoke, "bp4d") == data_spec("disfa", smoke)
    plan = make_plan(["au_rcnn_table8"], "smoke", "bp4d", tmp_path / "results")
    assert plan.source == "bp4d" and {e["spec"]["source"] for e in plan.data.values()} == {"world"}


@pytest.mark.parametrize("synthetic, kind", [(False, "real"), (True, "world")])
def test_tables_of_real_data_say_so(tmp_path, synthetic, kind):
    bp4d_faces(synthetic).save(tmp_path / "faces")
    add_set("bp4d", tmp_path / "faces")
    (tmp_path / "mine.yaml").write_text(STUDY)
    study, spec = load_study(tmp_path / "mine.yaml"), data_spec("bp4d", load_profile("smoke"), "bp4d")
    faces = open_data(spec, "bp4d")
    assert record_data(faces, spec, tmp_path / "record")["synthetic"] is synthetic
    assert set(statistics_table(study, faces, 20)["kind"]) == {kind}


def test_a_tree_is_prepared_once_before_the_plan(tmp_path, monkeypatch, capsys):
    calls = []
    def prepare(dataset, out, size, stride, jobs):
        calls.append((dataset, size, stride, jobs))
        bp4d_faces(subjects=6).save(out)
        return type("Made", (), {"kept": 48, "quarantined": 0, "folder": out})
    monkeypatch.setattr("au_study.datasets.prepare.prepare", prepare)
    monkeypatch.setattr("au_study.study.data.open_known", lambda name: type("Tree", (), {"name": name, "card": lambda self: bp4d_faces().card, "labels": lambda self: bp4d_faces().frames})())
    entry = Known("bp4d", str(tmp_path), "tree", counts={"subjects": 6, "videos": 6, "frames": 48})
    config_folder().mkdir(parents=True)
    (config_folder() / "data.json").write_text(json.dumps({"format": "au_study.data/1", "data": {"bp4d": {k: v for k, v in vars(entry).items() if k != "name"}}}))
    (tmp_path / "mine.yaml").write_text(STUDY)
    names = [str(tmp_path / "mine.yaml")]
    assert len(make_ready(names, "quick", "bp4d", dry_run=True)) == 1 and not calls and "would be prepared first" in capsys.readouterr().out
    before = next(iter(make_plan(names, "quick", "bp4d", tmp_path / "results").data))
    make_ready(names, "quick", "bp4d", jobs=1)
    assert [c[1:] for c in calls] == [(80, 1, 1)] and make_ready(names, "quick", "bp4d") == [] and len(calls) == 1
    spec = data_spec("bp4d", load_profile("quick"), "bp4d")
    assert spec["fingerprint"] == bp4d_faces().fingerprint and (prepared_folder(entry, 80, 1) / "manifest.json").exists()
    assert before != next(iter(make_plan(names, "quick", "bp4d", tmp_path / "results").data))
    assert len(full_labels(spec, open_data(spec, "bp4d"))) == 48
    prepare_known(spec)
    assert len(calls) == 1


def test_names_of_data_sets_and_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_sets("world") == {} and named_sets(str(tmp_path)) == {}
    with pytest.raises(ManifestError, match="says it once"): named_sets("bp4d")
    (tmp_path / "bp4d").mkdir()
    assert named_sets("bp4d") == {}                                   # a folder of that name, and nothing known
    with pytest.raises(ValueError, match="give its root"): open_known("bp4d")
