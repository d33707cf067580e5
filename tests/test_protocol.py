"A protocol says of the data what is so, or nothing runs; the remedies of the messages are typed and work. A profile of one's own is all of what it was copied from."
import re
import shutil
from pathlib import Path

import pytest

from au_study.datasets.layouts import write_layout
from au_study.faces import FaceSet
from au_study.faces.mixture import mix
from au_study.study.cli import main
from au_study.study.config import add_set
from au_study.study.data import UNPREPARED, under_protocol
from au_study.study.manifests import ManifestError, load_profile, project_root
from au_study.study.plan import make_plan, make_ready
from au_study.study.protocol import protocol_of
from au_study.training.batches import blob_faces

STUDY = "paper: p\ntitle: t\ndataset: {dataset}\nprotocol: {{split: {split}, aus: [{aus}], crop: {crop}}}\nrows: {{always: {{estimator: prior{more}}}}}\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    "Three people of DISFA's layout, one of each third, with landmarks of their own."
    return write_layout("disfa", "disfa", tmp_path_factory.mktemp("tree") / "DISFA", subjects=3, frames=6, size=128, stride=30, progress=False)


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A folder to type commands in, and a configuration that knows nothing."
    for name in ("config", "cache"): (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AU_STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(home, split, dataset="disfa", aus="1, 12", crop="five-point", more=""):
    path = home / f"{dataset}-{split}-{crop}{len(more)}.yaml"
    path.write_text(STUDY.format(split=split, dataset=dataset, aus=aus, crop=crop, more=more))
    return path


def planned(path, source): return make_plan([path], "quick", str(source), path.parent / "results")


def typed(error, root, folder):
    "Type the command of a message; returns the folder for --data."
    command = re.search(r"`au-study (prepare .*?)`, then `--data DIR`", str(error.value))[1]
    assert main(command.replace("ROOT", str(root)).replace("DIR/", f"{folder}/").split() + ["--jobs", "0", "--quiet"]) == 0
    return folder


def test_other_folds_are_refused_and_the_remedies_work(home, tree):
    assert main(["prepare", "disfa", str(tree), "--out", "faces/disfa", "--size", "32", "--jobs", "0", "--quiet"]) == 0
    assert len(planned(study(home, "disfa-3fold"), "faces").runs) == len(planned(study(home, "disfa-aunet"), "faces").runs) == 3   # two names of the same folds
    other = study(home, "disfa-me-graphau")
    with pytest.raises(ManifestError, match="row always: disfa: .*those of disfa-3fold and disfa-aunet. Name disfa-3fold") as error: planned(other, "faces")
    assert "--size 32" in str(error.value) and len(planned(other, typed(error, tree, "again")).runs) == 3
    one, two = (FaceSet.load(Path(f) / "disfa") for f in ("faces", "again"))
    rules = protocol_of({"split": "disfa-me-graphau", "aus": [1, 12]})
    assert one.card.folds != two.card.folds and under_protocol(two, rules).columns == ["AU1", "AU12"]
    with pytest.raises(ManifestError, match="names the split disfa-me-graphau"): under_protocol(one, rules)     # a run asks again
    with pytest.raises(ManifestError, match="'bp4d-3fold' is a split of another data set, not of disfa"): planned(study(home, "bp4d-3fold"), "faces")
    with pytest.raises(ManifestError, match="disfa-3folds, which nobody knows"): planned(study(home, "disfa-3folds"), "faces")
    graded = study(home, "disfa-me-graphau", aus="5, 12", more=", data: {labels: intensity}")     # AU5 is coded, and not among those that papers score
    with pytest.raises(ManifestError, match="names the split disfa-me-graphau") as error: planned(graded, "faces")
    assert len(planned(graded, typed(error, tree, "graded")).runs) == 3
    assert under_protocol(FaceSet.load("graded/disfa"), protocol_of({"split": "disfa-me-graphau", "aus": [5, 12]})).columns == ["AU5", "AU12"]


def test_another_crop_is_refused_and_the_remedies_work(home, tree):
    assert main(["prepare", "disfa", str(tree), "--out", "faces/disfa", "--size", "32", "--recipe", "eye-line", "--jobs", "0", "--quiet"]) == 0
    with pytest.raises(ManifestError, match="the protocol says five-point crop, the faces are cut by eye-line; say `crop: eye-line`") as error: planned(study(home, "disfa-3fold"), "faces")
    assert len(planned(study(home, "disfa-3fold", crop="eye-line"), "faces").runs) == 3
    assert len(planned(study(home, "disfa-3fold"), typed(error, tree, "again")).runs) == 3


def test_a_tree_is_asked_before_it_is_prepared(home, tree, capsys):
    add_set("disfa", tree, stride=2)
    with pytest.raises(ManifestError, match="names the split disfa-me-graphau") as error: make_ready([study(home, "disfa-me-graphau")], "smoke", "disfa", 0)
    assert not list((home / "cache").glob("prepared/*")) and "ROOT" not in str(error.value)
    assert len(planned(study(home, "disfa-me-graphau"), typed(error, "nowhere", "faces")).runs) == 3
    assert "--stride 2" in str(error.value) and 6 <= len(FaceSet.load("faces/disfa")) <= 9      # every other of six frames of three people; not in all is a face found
    (spec,) = make_ready([study(home, "disfa-3fold")], "smoke", "disfa", dry_run=True)
    assert spec["fingerprint"] == UNPREPARED and "would be prepared first" in capsys.readouterr().out


def test_what_cannot_be_compared_passes(home, tree):
    assert main(["prepare", "disfa", str(tree), "--out", "faces/disfa", "--size", "32", "--jobs", "0", "--quiet"]) == 0
    add_set("disfa", home / "faces/disfa")
    both = ", train_on: {datasets: [disfa, affwild2], protocol: {split: mixed}}"
    for split, dataset, aus in (("bp4d-me-graphau", "bp4d", "1, 12"), ("affwild2-official", "affwild2", "1, 12")): assert planned(study(home, split, dataset, aus), "world").runs
    assert len(planned(study(home, "disfa-3fold", more=both.replace(", affwild2]", ", bp4d]")), "world").runs) == 6
    with pytest.raises(ManifestError, match="'disfa-3flod' is no split of disfa; did you mean 'disfa-3fold'"): planned(study(home, "disfa-3flod"), "world")
    faces, strangers = FaceSet.load(home / "faces/disfa"), blob_faces(4, 6, size=32)
    mixture = mix({"disfa": faces, "blobs": strangers}, folds={"blobs": []})
    for split in ("mixed", "disfa-3fold", "disfa-me-graphau"): assert len(under_protocol(mixture, protocol_of({"split": split, "aus": [4, 12]}))) == len(mixture)
    assert under_protocol(strangers, protocol_of({"split": "blobs-2fold", "aus": [4]})).aus == (4,)
    assert under_protocol(faces, protocol_of({"split": "all-frames", "aus": [4]})).aus == (4,)
    strangers.save(home / "faces/blobs")
    assert planned(study(home, "blobs-2fold", "blobs", "4, 12", "none"), home / "faces").runs


# --- a profile of one's own --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("profile", ["smoke", "quick", "full"])
def test_a_copy_of_a_profile_is_all_of_it(home, capsys, profile):
    "With the folder beside it: the same runs under its own name, and an analysis finds its sizes."
    folder, studies = project_root() / "data_manifests/profiles", ["au_rcnn_table5", "re_net_table6", "au_rcnn_table16"]
    shutil.copy(folder / f"{profile}.yaml", home / "mine.yaml")
    def given(p): return sorted(str((r["parameters"]["estimator"], r["parameters"]["params"], r["fold"], r["seed"])) for r in make_plan(studies, p, results=home).runs.values())
    whole = given(profile)
    assert "no sizes" not in capsys.readouterr().out
    bare = given("mine.yaml")
    if bare == whole: pytest.fail("nothing is lost without the folder: this test looks at the wrong studies")
    said = capsys.readouterr().out
    assert re.search("mine.yaml has no sizes for .*au_rcnn, face_cnn, re_net, which run at their defaults", said) and f"`cp -r {folder / 'full'} {home / 'mine'}`" in said
    shutil.copytree(folder / profile, home / "mine")
    assert given("mine.yaml") == whole and capsys.readouterr().out == ""
    (table,) = make_plan(["au_rcnn_table16"], "mine.yaml", results=home).studies.values()
    assert load_profile(table["parameters"]["profile"]).estimators == load_profile(profile).estimators
