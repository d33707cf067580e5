"au-study check on trees made by hand, with planted faults: each is named by file and line, nothing ends in a traceback."
import os

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from au_study.datasets.affwild2 import AffWild2
from au_study.datasets.cards import load_dataset_manifest
from au_study.datasets.check import check_dataset
from au_study.study.cli import main

SUBJECTS = ["F" + "001", "M" + "005"]   # put together, so that this file holds no subject id
BP4D = load_dataset_manifest("bp4d").coded_aus


def picture(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    done, data = cv2.imencode(path.suffix.lower(), rng.integers(0, 255, (48, 40, 3), np.uint8))
    path.write_bytes(data.tobytes())


@pytest.fixture
def bp4d(tmp_path):
    "Two subjects, one task each, ten coded frames and two pictures before them."
    root = tmp_path / "a copy, größer"
    for i, subject in enumerate(SUBJECTS):
        for n in range(18, 30): picture(root / "BP4D-training" / subject / "T1" / f"{n:0{3 + i}d}.jpg", n)
        rows = [",".join(["0", *map(str, BP4D)])] + [",".join([str(n), *("1" if (n + a) % 3 else "0" for a in BP4D)]) for n in range(20, 30)]
        (root / "AUCoding").mkdir(exist_ok=True)
        (root / "AUCoding" / f"{subject}_T1.csv").write_text("\n".join(rows) + "\n")
    return root


def check(root, name="bp4d", **more):
    return check_dataset(name, root, jobs=0, progress=False, **more)


def errors(report): return [p for p in report.problems if p.severity == "error"]


def test_a_whole_copy_has_no_errors(bp4d):
    report = check(bp4d)
    assert errors(report) == [] and report.code == 0
    assert report.recordings["labelled"].tolist() == [10, 10] and report.recordings["picture_without_label"].tolist() == [2, 2]
    assert report.recordings["label_without_picture"].sum() == 0
    assert any("41 are expected" in p.message for p in report.problems)     # a small copy: a warning
    assert not any("between the first and the last" in p.message for p in report.problems)


def lines_of(root, subject): return (root / "AUCoding" / f"{subject}_T1.csv").read_text().splitlines()


def write_lines(root, subject, lines, end="\n", bom=False):
    (root / "AUCoding" / f"{subject}_T1.csv").write_bytes((b"\xef\xbb\xbf" if bom else b"") + (end.join(lines) + end).encode())


def test_faults_of_labels_are_named_by_line(bp4d):
    lines = lines_of(bp4d, SUBJECTS[0])
    cells = lines[4].split(",")
    lines[4] = ",".join([cells[0], "7", *cells[2:]])
    lines.insert(6, lines[5])
    write_lines(bp4d, SUBJECTS[0], lines, "\r\n", bom=True)
    report = check(bp4d, labels_only=True)
    found = {(p.line, p.column): p.message for p in errors(report)}
    assert "found 7" in found[5, "AU1"] and "comes again" in found[7, "frame"]
    row = report.recordings.iloc[0]
    assert (row["duplicated"], row["out_of_range"], row["errors"], row["rows"]) == (1, 1, 2, 10)
    assert pd.isna(row["pictures"])


def test_faults_of_pictures_are_named_by_file(bp4d):
    folder = bp4d / "BP4D-training" / SUBJECTS[0] / "T1"
    torn = folder / "021.jpg"
    torn.write_bytes(torn.read_bytes()[:300])
    (folder / "022.jpg").unlink()
    (folder / "023.jpg").rename(folder / "23.JPG")
    picture(folder / "24.png")
    (folder / "018.jpg").write_bytes(b"")
    os.symlink(folder, folder / "loop")
    report = check(bp4d)
    told = [str(p) for p in errors(report)]
    assert any("021.jpg" in t and "cut off" in t for t in told)
    assert any("without a picture (1 of 10): 22" in t for t in told)
    assert any("024.jpg, 24.png" in t for t in told)
    assert not any("23.JPG" in t for t in told)                              # case does not matter
    assert any(p.severity == "warning" and p.frame == 18 for p in report.problems)   # unreadable, but nobody coded it
    row = report.recordings.iloc[0]
    assert (row["label_without_picture"], row["unreadable"], row["duplicated"]) == (1, 3, 1)
    assert {p.place for p in errors(check(bp4d, decode=False))} < {p.place for p in errors(report)}


def test_workers_find_what_one_process_finds(bp4d):
    (bp4d / "BP4D-training" / SUBJECTS[1] / "T1" / "0025.jpg").write_bytes(b"none")
    assert check_dataset("bp4d", bp4d, jobs=2, progress=False).problems == check(bp4d).problems


def test_command_writes_its_report_and_tells_by_its_exit_code(bp4d, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "bp4d", str(bp4d), "--labels-only"]) == 0
    assert (tmp_path / "au_study_check_bp4d/check.html").exists()
    write_lines(bp4d, SUBJECTS[0], [lines_of(bp4d, SUBJECTS[0])[0], "x,1"])
    assert main(["check", "bp4d", str(bp4d), "--out", "report", "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert f"AUCoding/{SUBJECTS[0]}_T1.csv:2" in said and "Traceback" not in said
    table = pd.read_parquet(tmp_path / "report/check.parquet")
    assert (table["severity"] == "error").sum() == len(errors(check(bp4d))) and table["line"].dtype == "Int64"
    assert len(pd.read_parquet(tmp_path / "report/recordings.parquet")) == 2


def test_codes_that_mean_not_coded_are_given_on_the_command_line(bp4d, tmp_path, capsys):
    lines = lines_of(bp4d, SUBJECTS[0])
    cells = lines[4].split(",")
    lines[4] = ",".join([cells[0], "9", "999", *cells[3:]])
    write_lines(bp4d, SUBJECTS[0], lines)
    call = lambda *options: main(["check", "bp4d", str(bp4d), "--labels-only", "--out", str(tmp_path / "report"), *(x for o in options for x in ("--option", o))])
    assert [call(), call("unlabelled=999"), call("unlabelled=9,999"), call("unlabelled=9,999", "occlusion=false")] == [1, 1, 0, 0]
    said = capsys.readouterr().out
    assert "found 999, expected 0, 1 or 9" in said and "found 9, expected 0, 1 or 999" in said
    assert [call("unlabelled=nine"), call("occlusion=no")] == [2, 2]
    said = capsys.readouterr().err
    assert "unlabelled is 'nine'" in said and "occlusion is 'no'" in said


def test_disfa_with_an_empty_video(tmp_path):
    subject = "SN" + "001"
    for au in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
        path = tmp_path / "ActionUnit_Labels" / subject / f"{subject}_au{au}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{n},{n % 6}\n" for n in range(1, 9)))
    (tmp_path / "Videos_LeftCamera").mkdir()
    (tmp_path / "Videos_LeftCamera" / f"LeftVideo{subject}_comp.avi").write_bytes(b"")
    report = check(tmp_path, "disfa")
    assert any("empty (0 bytes)" in p.message and p.file.endswith("_comp.avi") for p in errors(report))
    assert report.recordings.iloc[0]["label_without_picture"] == 8


def test_affwild2_rows_without_a_face_are_no_errors(tmp_path):
    folder = tmp_path / "annotations/AU_Set/Training_Set"
    folder.mkdir(parents=True)
    (tmp_path / "annotations/AU_Set/Validation_Set").mkdir()
    rows = ["AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25", *["0,1,0,0,1,0,0,1"] * 4, ",".join(["-1"] * 8), "1,0,0,0,0,0,0,0"]
    for split in ("Training_Set", "Validation_Set"): (tmp_path / f"annotations/AU_Set/{split}/{split[:5]}.txt").write_text("\n".join(rows) + "\n")
    for name in ("Train", "Valid"):
        for n in (1, 2, 4): picture(tmp_path / "cropped_aligned" / name / f"{n:05d}.jpg", n)
    report = check(tmp_path, "affwild2")
    assert report.recordings["labelled"].tolist() == [5, 5] and report.recordings["label_without_picture"].tolist() == [2, 2]
    assert not any("without a picture" in p.message for p in errors(report))


@pytest.mark.parametrize("call", [["check", "bp5d", "."], ["check", "bp4d", "not there"], ["check", "bp4d"], ["check", "bp4d", ".", "--option", "camera"],
                                  ["check", "bp4d", ".", "--option", "colour=1"]])
def test_wrong_calls_end_in_a_sentence(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(call) == 2
    err = capsys.readouterr().err
    assert err.startswith("au-study: ") and "Traceback" not in err


def test_an_empty_folder_is_an_error_of_the_copy(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "bp4d", str(tmp_path)]) == 1
    assert "There are no" in capsys.readouterr().out


def test_names_with_stray_bytes_are_reported(tmp_path):
    folder = os.fsencode(tmp_path) + b"/annotations/AU_Set/Training_Set"
    os.makedirs(folder)
    try:
        with open(folder + b"/caf\xe9.txt", "wb") as f: f.write(b"AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25\n0,1,0,0,1,0,0,1\n")
    except OSError: pytest.skip("this file system takes UTF-8 names only")
    assert main(["check", "affwild2", str(tmp_path), "--labels-only", "--out", str(tmp_path / "report")]) == 1     # no Validation_Set
    assert r"in tables it is called caf\xe9" in (tmp_path / "report/check.html").read_text()
    assert AffWild2(tmp_path).labels(strict=False)["subject"].tolist() == [r"caf\xe9"]
    assert main(["check", "affwild2", str(tmp_path), "--option", "images=video", "--out", str(tmp_path / "report")]) == 1


def test_landmarks_that_cannot_be_used_are_named_by_file_and_reason(tmp_path):
    "A label file a person and AU, no video: landmarks are looked at where there are pictures."
    subject = "SN" + "001"
    for au in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
        path = tmp_path / "ActionUnit_Labels" / subject / f"{subject}_au{au}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{n},0\n" for n in (1, 2, 3, 4)))
    for n in range(1, 6): picture(tmp_path / "Img_LeftCamera" / subject / f"{n}.jpg", n)
    good = np.random.default_rng(0).uniform(0, 40, (66, 2))
    folder = tmp_path / "Landmark_Points" / subject / "tmp_frame_lm"
    folder.mkdir(parents=True)
    for n, content in enumerate(({"pts": good}, {"pts": good * np.nan}, {"pts": good[:49]}, {"points": good})): savemat(folder / f"{subject}_{n:04d}_lm.mat", content)
    report = check(tmp_path, "disfa")
    told = {p.frame: p for p in report.problems if p.file.endswith("_lm.mat")}
    assert [told[n].file for n in (2, 3, 4)] == [f"Landmark_Points/{subject}/tmp_frame_lm/{subject}_{n:04d}_lm.mat" for n in (1, 2, 3)] and len(told) == 3
    assert "not finite" in told[2].message and "(49, 2)" in told[3].message and "no variable pts, only points" in told[4].message
    assert any(p.severity == "warning" and "Pictures before the first or after the last label (1): 5" in p.message for p in report.problems)     # every frame is coded
    assert report.code == 0 and report.recordings["without_landmarks"].tolist() == [3]
