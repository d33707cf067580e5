"""DISFA and Aff-Wild2: label frame n meets the picture that shows n, whatever the file calls it; every planted fault is named by file and line."""

import re
import shutil

import numpy as np
import pytest
from scipy.io import savemat
from test_media import coded, film, painted, shown, write

from au_study.datasets.affwild2 import AffWild2, raw_name
from au_study.datasets.base import Tree
from au_study.datasets.check import check_dataset
from au_study.datasets.crops import given_points, landmark_notes
from au_study.datasets.disfa import DISFA, from_66_points
from au_study.datasets.problems import DatasetError
from au_study.facs import schematic_face

CODED = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
FACE = schematic_face(300)
KEPT = [i for i in range(68) if i not in (60, 64)]
FRAMES = 8


def level(n, au): return (3 * n + au) % 6


def label_file(root, subject, au, frames=range(1, FRAMES + 1)):
    return write(root / f"ActionUnit_Labels/{subject}/{subject}_au{au}.txt", "".join(f"{n},{level(n, au)}\n" for n in frames).encode())


def landmark(root, subject, name, k): savemat(write(root / f"Landmark_Points/{subject}/tmp_frame_lm/{name}_lm.mat", b""), {"pts": FACE[KEPT].astype(float) + k + 1})  # MATLAB counts from 1


@pytest.fixture
def disfa(tmp_path):
    "Two people of our own; the tree's name has a space and letters beyond ASCII."
    root = tmp_path / "DISFA größe 数据"
    for subject in ("SN901", "SN902"):
        for au in CODED: label_file(root, subject, au)
        for k in range(FRAMES):
            landmark(root, subject, f"{subject}_{k:04d}" if subject == "SN901" else f"l0{k + 1:04d}", k)
    film(root / "Videos_LeftCamera/LeftVideoSN901_comp.avi", range(FRAMES), fps=20)
    film(root / "Videos_LeftCamera/LeftVideoSN902_Comp.AVI", range(FRAMES), "XVID", fps=20)
    for subject in ("SN901", "SN902"): film(root / f"Video_RightCamera/RightVideo{subject}_comp.avi", range(FRAMES), fps=20)
    return root


def all_problems(data, landmarks=True):
    "Everything that an adapter and its media say."
    found = list(data.problems)
    for r in data.recordings():
        table, problems = data.read_labels(r)
        found += problems + data.match_frames(r, table) + (r.media.problems if r.media is not None else [])
        if landmarks: found += data.landmark_problems(r)
    return found


def said(data, pattern, severity="error"):
    "The problems of a severity whose line matches."
    return [p for p in all_problems(data) if p.severity == severity and re.search(pattern, str(p))]


def test_label_picture_and_landmarks_of_a_frame_meet(disfa):
    data = DISFA(disfa, camera="both")
    assert all_problems(data) == [] and [r.key for r in data.recordings()] == [(s, c) for s in ("SN901", "SN902") for c in ("left", "right")]
    labels = data.labels()
    assert len(labels) == 4 * FRAMES and [c for c in labels if c.startswith("AU")] == [f"AU{a}" for a in CODED]
    for r in data.recordings():
        mine = labels[(labels["subject"] == r.subject) & (labels["video"] == r.video)].set_index("frame")
        assert mine.index.tolist() == list(range(1, FRAMES + 1))
        for f in r.media.read(mine.index):
            assert shown(f.image) == f.number - 1
            assert mine.loc[f.number, "AU12"] == level(f.number, 12)
        points = data.read_landmarks(r, [*mine.index, FRAMES + 1])
        if r.video == "right": assert points is None; continue
        assert points[FRAMES + 1] is None
        for n in mine.index: assert points[n].dtype == np.float32 and np.allclose(points[n][KEPT], FACE[KEPT] + n - 1, atol=1e-3)


def test_66_points_keep_their_places():
    points = np.arange(132, dtype=float).reshape(66, 2)
    full = from_66_points(points)
    assert np.array_equal(full[:60], points[:60]) and np.array_equal(full[61:64], points[60:63]) and np.array_equal(full[65:], points[63:])
    assert from_66_points(np.stack([points, points])).shape == (2, 68, 2)
    eye = np.linalg.norm(FACE[36] - FACE[45])
    assert np.linalg.norm(from_66_points(FACE[KEPT])[[60, 64]] - FACE[[60, 64]], axis=-1).max() < .01 * eye
    assert np.isnan(from_66_points(np.where(np.arange(66)[:, None] == 48, np.nan, points))[60]).all()


def test_thresholds_and_card(disfa):
    data = DISFA(disfa)
    assert (data.card().threshold, data.card(threshold="re_net").threshold, data.card(threshold="au_rcnn").threshold, data.card(threshold=1).threshold) == (2, 1, 1, 1)
    assert (data.card().kind, data.card().fps, data.card().synthetic, data.card().publishable) == ("intensity", 20, False, ())
    (disfa / "world.json").write_text('{"synthetic": true}')
    assert DISFA(disfa).card().synthetic
    (disfa / "world.json").write_text("{")
    assert not DISFA(disfa).card().synthetic


@pytest.mark.parametrize("content, severity, where", [
    ("\ufeff" + "".join(f"{n},0\r\n" for n in range(1, 9)), "note", r"SN901_au4\.txt:1"),
    ("".join(f"{n},{6 if n == 3 else 0}\n" for n in range(1, 9)), "error", r"SN901_au4\.txt:3:AU4 found 6, expected 0, 1, 2, 3, 4 or 5"),
    ("".join(f"{n},{'' if n == 5 else 0}\n" for n in range(1, 9)), "error", r"SN901_au4\.txt:5:AU4 found an empty cell"),
    ("".join(f"{n},{-1 if n == 5 else 0}\n" for n in range(1, 9)), "error", r"SN901_au4\.txt:5:AU4 found -1"),
    ("".join(f"{n},2.5\n" for n in range(1, 9)), "error", r"SN901_au4\.txt:1:AU4 found '2\.5'"),
    ("".join(f"{n},0\n" for n in (1, 2, 2, 4, 5, 6, 7, 8)), "error", r"SN901_au4\.txt:3:frame frame 2 comes again"),
    ("".join(f"{n},0\n" for n in range(0, 8)), "error", r"SN901_au4\.txt:1:frame found frame 0, but frames are numbered from 1"),
    ("".join(f"{n},0\n" for n in range(2, 10)), "error", r"SN901_au4\.txt lacks 1 and has besides 9"),
    ("".join(f"{n},0\n" for n in range(1, 6)), "error", r"SN901_au4\.txt lacks 6 to 8"),
    ("".join(f"{n},0,extra\n" for n in range(1, 9)), "error", r"SN901_au4\.txt:1 the row has 3 cells, expected 2"),
    ("1,0\n\n3,0\n", "error", r"SN901_au4\.txt:2 the line is empty"),
    ("", "error", r"SN901_au4\.txt the file is empty"),
    ("\x89PNG\r\n\x1a\n", "error", r"SN901_au4\.txt"),
    ("<html>expired</html>", "error", r"SN901_au4\.txt the file is an HTML page"),
], ids=["bom and crlf", "code 6", "empty cell", "code -1", "2.5", "repeated frame", "from 0", "shifted by one", "shorter", "extra column", "empty line", "empty file", "binary", "html"])
def test_faults_of_a_disfa_label_file(disfa, content, severity, where):
    (disfa / "ActionUnit_Labels/SN901/SN901_au4.txt").write_bytes(content.encode("latin-1") if content.startswith("\x89") else content.encode())
    data = DISFA(disfa)
    assert said(data, where, severity), [str(p) for p in all_problems(data)]
    if severity == "error":
        with pytest.raises(DatasetError, match=where): data.labels()
        loose = data.labels(strict=False)
        assert loose.loc[loose["subject"] == "SN902", "AU4"].notna().all() and loose["AU12"].notna().sum() >= 2 * FRAMES
    else: assert data.labels()["AU4"].notna().all()


def test_codes_written_as_floats_are_codes(disfa):
    (disfa / "ActionUnit_Labels/SN901/SN901_au4.txt").write_text("".join(f"{n}.0,3.0\n" for n in range(1, 9)))
    labels = DISFA(disfa).labels()
    assert (labels.loc[labels["subject"] == "SN901", "AU4"] == 3).all()


@pytest.mark.parametrize("camera, films", [("left", 1), ("right", 1), ("both", 2)])
def test_a_copy_is_whole_if_it_holds_the_films_of_the_cameras_that_were_asked_for(disfa, camera, films):
    counts = check_dataset(DISFA(disfa, camera=camera), decode=False, jobs=0, progress=False).counts
    assert counts["expected"].to_dict() == dict(subjects=27, videos=27 * films, frames=130814 * films)
    assert counts["counted"].to_dict() == dict(subjects=2, videos=2 * films, frames=2 * FRAMES * films)


def test_missing_parts_of_disfa_are_named(disfa):
    (disfa / "ActionUnit_Labels/SN901/SN901_au9.txt").unlink()
    (disfa / "Videos_LeftCamera/LeftVideoSN902_Comp.AVI").unlink()
    shutil.rmtree(disfa / "Landmark_Points/SN902")
    (disfa / "ActionUnit_Labels/SN903").mkdir()
    data = DISFA(disfa)
    assert said(data, r"SN901_au9\.txt:AU9 The file is missing; 11 other AU files are there")
    assert said(data, r"Videos_LeftCamera/LeftVideoSN902_comp.avi The left video of SN902 is missing") and said(data, r"ActionUnit_Labels/SN903 It has no label files")
    with pytest.raises(DatasetError, match="SN901_au9"): data.labels()
    with pytest.raises(DatasetError, match="SN903 It has no label files"): data.labels()
    left = {r.subject: r for r in data.recordings()}
    assert data.read_landmarks(left["SN902"], [1]) is None and left["SN902"].media is None
    assert np.isnan(data.read_labels(left["SN901"])[0]["AU9"]).all()


def test_files_in_the_wrong_place_or_twice(disfa):
    label_file(disfa, "SN902", 4).rename(disfa / "ActionUnit_Labels/SN901/SN902_au4.txt")
    shutil.copy(disfa / "ActionUnit_Labels/SN901/SN901_au5.txt", disfa / "ActionUnit_Labels/SN901/SN901_au05.txt")
    shutil.copy(disfa / "Videos_LeftCamera/LeftVideoSN901_comp.avi", disfa / "Videos_LeftCamera/LeftVideoSN901_Comp.avi")
    (disfa / "ActionUnit_Labels/SN901/readme.txt").write_text("hello")
    data = DISFA(disfa)
    assert said(data, r"SN901/SN902_au4\.txt This file of SN902 lies in the folder of SN901") and said(data, r"AU0?5 comes twice")
    label_file(disfa, "SN901", 7)
    assert said(DISFA(disfa), r"SN901_au7\.txt AU7 is none of the coded AUs", "note")
    assert said(data, r"There are 2 videos of one person") and said(data, r"1 file passed over, expected label files: readme\.txt", "note")
    assert next(r for r in data.recordings() if r.subject == "SN901").media is None


@pytest.mark.parametrize("n, severity, message", [(6, "error", "The labels of SN901 left run to frame 8, the pictures end at frame 6: 2 label frames too many."),
                                                  (10, "warning", "Pictures before the first or after the last label (2): 9 to 10; the labels of SN901 left run from 1 to 8.")])
def test_video_and_labels_of_different_length(disfa, n, severity, message):
    film(disfa / "Videos_LeftCamera/LeftVideoSN901_comp.avi", range(n), fps=20)
    found = said(DISFA(disfa), re.escape(message), severity)
    assert [(p.subject, p.file) for p in found] == [("SN901", "Videos_LeftCamera/LeftVideoSN901_comp.avi")]


@pytest.mark.parametrize("spoil, why", [(lambda p: p.write_bytes(b""), "is empty"), (lambda p: p.write_bytes(p.read_bytes()[:-3000]), "was cut off"),
                                        (lambda p: p.write_text("404"), "cannot be opened as a video")])
def test_a_broken_video_is_named_and_does_not_stop_the_labels(disfa, spoil, why):
    path = disfa / "Videos_LeftCamera/LeftVideoSN901_comp.avi"
    spoil(path)
    data = DISFA(disfa)
    assert said(data, f"LeftVideoSN901_comp.avi .*{why}")
    assert len(data.labels()) == 2 * FRAMES
    frames = list(data.recordings()[0].media.read(range(1, FRAMES + 1)))
    assert [f.number for f in frames] == list(range(1, FRAMES + 1)) and frames[-1].image is None


def test_extracted_pictures_and_their_first_number(disfa):
    shutil.rmtree(disfa / "Videos_LeftCamera")
    for k in range(FRAMES):
        write(disfa / f"Img_LeftCamera/SN901/{k + 1}.jpg", coded(painted(k)))  # numbered from 1
        write(disfa / f"Img_LeftCamera/SN902/{k:05d}.PNG", coded(painted(k), ".png"))  # numbered from 0
    data = DISFA(disfa)
    assert said(data, r"Img_LeftCamera/SN902 The pictures are numbered from 0 to 7, the labels from 1.*first_image=0")
    one, zero = data.recordings()
    assert [(f.number, shown(f.image)) for f in one.media.read()] == [(k + 1, k) for k in range(FRAMES)] and zero.media is None
    from_0 = {r.subject: r for r in DISFA(disfa, first_image=0).recordings()}["SN902"]
    assert [(f.number, shown(f.image)) for f in from_0.media.read()] == [(k + 1, k) for k in range(FRAMES)]


def test_broken_landmarks_are_frames_without_landmarks(disfa):
    at = disfa / "Landmark_Points/SN901/tmp_frame_lm"
    lost = FACE[KEPT].astype(float); lost[7, 1] = np.nan
    savemat(at / "SN901_0000_lm.mat", {"pts": lost})
    savemat(at / "SN901_0001_lm.mat", {"pts": FACE.astype(float)})  # 68 points
    savemat(at / "SN901_0002_lm.mat", {"points": lost})
    write(at / "SN901_0003_lm.mat", b""); write(at / "SN901_0004_lm.mat", b"MATLAB 5.0 MAT-file" + bytes(200))
    whole = (at / "SN901_0005_lm.mat").read_bytes()
    write(at / "SN901_0005_lm.mat", whole[:len(whole) // 2]); (at / "SN901_0006_lm.mat").unlink()
    data = DISFA(disfa)
    r = data.recordings()[0]
    points = data.read_landmarks(r, range(1, 9))
    assert [n for n in points if points[n] is not None] == [8]
    told = [str(p) for p in data.landmark_problems(r, range(1, 9))]
    for text in ("SN901_0000_lm.mat The landmark file has points that are not finite (1 of 66)", "shape (68, 2)", "has no variable pts, only points",
                 "SN901_0003_lm.mat", "SN901_0004_lm.mat", "SN901_0005_lm.mat", "Frames without a landmark file (1): 7"):
        assert any(text in t for t in told), (text, told)
    numbers = np.arange(1, 9)
    notes = landmark_notes(data, r, numbers, given_points(points, numbers))
    assert set(notes) == set(range(7)) and "SN901_0002_lm.mat: The landmark file has no variable pts" in notes[2]


def test_whoever_has_no_landmarks_is_named(disfa):
    shutil.rmtree(disfa / "Landmark_Points/SN902")
    assert [(p.file, p.subject) for p in said(DISFA(disfa), "SN902 has no landmarks, 1 other of 2 people have", "warning")] == [("Landmark_Points/SN902", "SN902")]
    shutil.rmtree(disfa / "Landmark_Points")
    assert said(DISFA(disfa), "Landmark_Points There are no landmarks", "note") and not said(DISFA(disfa), "landmark", "warning")
    assert all(DISFA(disfa, camera="right").read_landmarks(r, [1]) is None for r in DISFA(disfa, camera="right").recordings())


def test_a_missing_right_video_is_named_by_its_path(disfa):
    (disfa / "Video_RightCamera/RightVideoSN902_comp.avi").unlink()
    assert [p.file for p in said(DISFA(disfa, camera="both"), "The right video of SN902 is missing")] == ["Video_RightCamera/RightVideoSN902_comp.avi"]
    shutil.rmtree(disfa / "Video_RightCamera")
    assert [p.file for p in DISFA(disfa, camera="right").problems if p.severity == "error"] == ["Video_RightCamera"]


def test_a_root_one_level_off_says_where_to_look(disfa, wild):
    for data, inside in ((DISFA, "ActionUnit_Labels"), (AffWild2, "annotations/AU_Set")):
        root = disfa if data is DISFA else wild
        shutil.move(root, root.parent / "above" / root.name)
        assert any(f"They seem to lie in {root.name!r}" in str(p) for p in data(root.parent / "above").problems)
        assert any("give the folder that holds it" in str(p) for p in data(root.parent / "above" / root.name / inside).problems)
        shutil.rmtree(root.parent / "above")


def test_links_in_circles_do_not_stop_the_search(disfa):
    (disfa / "ActionUnit_Labels/SN901/loop").symlink_to(disfa)
    (disfa / "ActionUnit_Labels/SN904").symlink_to(disfa / "ActionUnit_Labels/SN904")
    data = DISFA(disfa)
    assert said(data, "ActionUnit_Labels/SN904 It cannot be looked at: the link leads in a circle") and said(data, "leads back to a folder that contains it", "warning")
    with pytest.raises(DatasetError, match="SN904"): data.labels()  # a person may be missing


def test_a_label_folder_that_may_not_be_read_is_no_silent_hole(disfa, monkeypatch):
    from au_study.datasets import media
    scan = media.os.scandir

    def refuse(path):
        if str(path).endswith("SN902"): raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(media.os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"ActionUnit_Labels/SN902 The folder cannot be read: Permission denied"): DISFA(disfa).labels()


# --- Aff-Wild2 ---------------------------------------------------------------------------------------------------------------------

HEADER = "AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25"
ORDER = (1, 2, 4, 6, 12, 15, 20, 25)


def wild_row(i): return ",".join(["-1"] * 8 if i == 4 else [str(int((i * a) % 3 == 0)) for a in ORDER])


def annotation(root, part, video, rows): return write(root / f"annotations/AU_Set/{part}/{video}.txt", ("\n".join([HEADER, *rows]) + "\n").encode())


@pytest.fixture
def wild(tmp_path):
    root = tmp_path / "Aff Wild größe"
    for part, video in (("Training_Set", "duo_left"), ("Training_Set", "duo_right"), ("Training_Set", "4-30-1280x720"), ("Validation_Set", "vidéo 7")):
        annotation(root, part, video, [wild_row(i) for i in range(1, 11)])
        for i in range(1, 11):
            if i not in (3, 10): write(root / f"cropped_aligned/{video}/{i:05d}.jpg", coded(painted(i)))
    film(root / "batch1/duo.mp4", range(10), "mp4v", fps=30); film(root / "batch2/4-30-1280x720.AVI", range(10), fps=30); film(root / "batch2/vidéo 7.mp4", range(10), "mp4v", fps=23.98)
    write(root / "aus_test_set.txt", b"hidden_left\n")
    return root


@pytest.mark.parametrize("images, offset", [("cropped_aligned", 0), ("video", 1)])
def test_row_i_meets_picture_i(wild, images, offset):
    data = AffWild2(wild, images=images)
    assert [p for p in all_problems(data) if p.severity != "note"] == []
    labels = data.labels()
    for r in data.recordings():
        mine = labels[labels["subject"] == r.subject].set_index("frame")
        assert r.subject == r.video and mine.index.tolist() == list(range(1, 11))
        gaps = [f.number for f in r.media.read(mine.index) if f.missing]
        assert gaps == ([3, 10] if offset == 0 else [])
        for f in r.media.read(mine.index):
            if f.image is not None: assert shown(f.image) == f.number - offset
        assert mine.loc[4, [f"AU{a}" for a in ORDER]].isna().all() and mine.drop(index=4).notna().all(axis=None)
        assert mine.loc[6, [f"AU{a}" for a in ORDER]].tolist() == [int(6 * a % 3 == 0) for a in ORDER]


def test_the_fold_is_the_validation_set(wild):
    assert AffWild2(wild).card().folds == (("vidéo 7",),) and AffWild2(wild).card(split="affwild2-official").folds == (("vidéo 7",),)
    assert AffWild2(wild).card(split=[["duo_left", "duo_right"]]).folds == (("duo_left", "duo_right"),)
    assert {r.video: r.part for r in AffWild2(wild).recordings()}["duo_left"] == "Training_Set"


def test_names_of_raw_videos():
    assert [raw_name(v) for v in ("a_left", "a_right", "a", "_left", "a_left_right", "left")] == ["a", "a", "a", "", "a_left", "left"]


def test_a_face_that_was_not_found_is_a_note(wild):
    found = said(AffWild2(wild), "Labelled frames of duo_left without a picture", "note")
    assert [p.message for p in found] == ["Labelled frames of duo_left without a picture (2 of 9): 3, 10."]
    frame = next(AffWild2(wild).recordings()[1].media.read([3]))
    assert frame.missing and frame.image is None


@pytest.mark.parametrize("rows, severity, where", [
    ([HEADER, "0,0,0,0,0,0,0,0", "-1,0,0,0,0,0,0,0"], "note", r"duo_left\.txt:3 .*only some AUs are coded \(1\)"),
    ([HEADER, "0,0,0,0,0,0,0,7"], "error", r"duo_left\.txt:2:AU25 found 7, expected 0, 1 or -1 \(not coded\)"),
    ([HEADER, "0,0,0,0,0,0,0,-5"], "error", r"duo_left\.txt:2:AU25 found -5"),
    ([HEADER, "0,0,0,0,0,0,0"], "error", r"duo_left\.txt:2 the row has 7 cells, expected 8"),
    (["0,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0"], "error", r"duo_left\.txt:1 "),
    ([HEADER.replace("AU12,", ""), "0,0,0,0,0,0,0"], "error", r"duo_left\.txt:1:AU12 the header has no column AU12"),
    ([HEADER, "0,0,0,0,0,0,0,0", "", "0,0,0,0,0,0,0,0"], "error", r"duo_left\.txt:3 the line is empty"),
    ([HEADER], "error", r"duo_left\.txt the file holds no row of labels"),
    ([""], "error", r"duo_left\.txt the file is empty"),
], ids=["some cells -1", "code 7", "code -5", "short row", "no header", "no AU12", "empty line", "no rows", "empty"])
def test_faults_of_an_annotation(wild, rows, severity, where):
    write(wild / "annotations/AU_Set/Training_Set/duo_left.txt", "\n".join(rows).encode())
    data = AffWild2(wild)
    assert said(data, where, severity), [str(p) for p in all_problems(data)]
    if severity == "error":
        with pytest.raises(DatasetError, match=where): data.labels()
        assert data.labels(strict=False)["subject"].nunique() >= 3
    else:
        mine = data.labels().query("subject == 'duo_left' and frame == 2").iloc[0]
        assert np.isnan(mine["AU1"]) and mine["AU2"] == 0


def test_columns_are_read_by_name(wild):
    write(wild / "annotations/AU_Set/Training_Set/duo_left.txt", b"AU25,AU7,AU20,AU15,AU12,AU6,AU4,AU2,AU1\r\n1,1,0,0,0,0,0,0,1\r\n0,1,0,0,0,0,0,1,0\r\n")
    mine = AffWild2(wild).labels().query("subject == 'duo_left'")
    assert mine[["AU1", "AU2", "AU25"]].values.tolist() == [[1, 0, 1], [0, 1, 0]] and "AU7" not in mine


def test_a_video_in_both_sets_is_in_neither(wild):
    annotation(wild, "Validation_Set", "duo_left", [wild_row(i) for i in range(1, 11)])
    data = AffWild2(wild)
    assert "duo_left" not in [r.subject for r in data.recordings()] and said(data, "trained on and tested")
    assert data.card().folds == (("vidéo 7",),)
    with pytest.raises(DatasetError, match="trained on and tested"): data.labels()


def test_missing_parts_of_affwild2_are_named(wild):
    shutil.rmtree(wild / "cropped_aligned/duo_right"); (wild / "batch2/vidéo 7.mp4").unlink()
    write(wild / "cropped_aligned/stranger/00001.jpg", coded(painted(1))); write(wild / "cropped_aligned/hidden_left/00001.jpg", coded(painted(1)))
    shutil.copy(wild / "batch1/duo.mp4", wild / "batch2/duo.mp4")
    crops, video = AffWild2(wild), AffWild2(wild, images="video")
    assert said(crops, "cropped_aligned/duo_right It has no folder of pictures") and said(video, r"batch\*/vidéo 7 It has no video")
    assert said(video, "The video is there 2 times: batch1/duo.mp4, batch2/duo.mp4")
    assert [p.file for p in said(crops, "no AU annotation", "note")] == ["cropped_aligned/stranger"]  # hidden_left is in the list of test videos
    assert len(crops.labels()) == 40
    shutil.rmtree(wild / "cropped_aligned")
    assert [p.message for p in AffWild2(wild).problems if p.severity == "error"] == ["None of the 4 annotated videos has a folder of pictures."]


def test_pictures_numbered_from_0_are_refused(wild):
    write(wild / "cropped_aligned/duo_left/00000.jpg", coded(painted(0)))
    data = AffWild2(wild)
    assert said(data, "cropped_aligned/duo_left There is a picture 0") and {r.subject: r.media is None for r in data.recordings()}["duo_left"]


def test_a_list_that_leads_elsewhere_is_not_followed(wild):
    write(wild / "aus_test_set.txt", b"hidden\n../../../etc/passwd\nC:\\x\n..\n")
    assert [p.line for p in said(AffWild2(wild), r"aus_test_set\.txt:\d+ .*not followed")] == [2, 3, 4]
    assert len(AffWild2(wild).labels()) == 40


def test_pictures_beyond_the_annotation_are_named(wild):
    annotation(wild, "Training_Set", "duo_left", [wild_row(i) for i in range(1, 8)])
    write(wild / "cropped_aligned/duo_right/00077.jpg", coded(painted(77)))
    found = said(AffWild2(wild, images="video"), "Pictures before the first or after the last label", "warning")
    assert [(p.file, p.subject, p.frame) for p in found] == [("batch1/duo.mp4", "duo_left", 8)] and "8 to 10; the labels of duo_left run from 1 to 7" in found[0].message
    found = said(AffWild2(wild), "Pictures before the first or after the last label", "warning")
    assert [(p.file, p.frame) for p in found] == [("cropped_aligned/duo_left", 8), ("cropped_aligned/duo_right", 77)]


def test_labels_longer_than_the_raw_video(wild):
    film(wild / "batch1/duo.mp4", range(7), "mp4v", fps=30)
    data = AffWild2(wild, images="video")
    assert [p.subject for p in said(data, r"The labels of duo_\w+ run to frame 10, the pictures end at frame 7: 3 label frames too many\.")] == ["duo_left", "duo_right"]


def test_broken_pictures_of_affwild2_are_counted(wild):
    at = wild / "cropped_aligned/duo_left"
    (at / "00001.jpg").write_bytes((at / "00001.jpg").read_bytes()[:300]); (at / "00002.jpg").write_bytes(b"")
    (at / "0004.jpg").write_bytes((at / "00004.jpg").read_bytes())
    frames = {f.number: f for f in AffWild2(wild).recordings()[1].media.read(range(1, 11))}
    assert sorted(frames) == list(range(1, 11)) and [n for n, f in frames.items() if f.image is None] == [1, 2, 3, 4, 10]
    assert [n for n, f in frames.items() if f.missing] == [3, 10]
    assert "00001.jpg: cut off" in frames[1].problem and "00002.jpg: the file is empty" in frames[2].problem
    assert "0004.jpg, 00004.jpg" in frames[4].problem.replace("00004.jpg, 0004.jpg", "0004.jpg, 00004.jpg")


@pytest.mark.parametrize("adapter, wrong", [(DISFA, dict(camera="front")), (DISFA, dict(first_image=2)), (DISFA, dict(landmark_origin=2)), (DISFA, dict(kind="occurrence")),
                                            (AffWild2, dict(images="faces")), (AffWild2, dict(kind="intensity"))])
def test_wrong_options_and_roots(tmp_path, adapter, wrong):
    with pytest.raises(DatasetError): adapter(tmp_path, **wrong)
    for root in (tmp_path / "gone", write(tmp_path / "file", b"")):
        with pytest.raises(DatasetError, match="The root of"): adapter(root)
    with pytest.raises(DatasetError, match="There is no folder"): adapter(tmp_path).labels()


def test_a_tree_is_looked_at_once(disfa, monkeypatch):
    from au_study.datasets import base
    seen = []
    monkeypatch.setattr(base, "scan_folder", lambda folder, root: (seen.append(folder), (["x"], [], []))[1])
    tree = Tree(disfa)
    for _ in range(3): assert tree.look("ActionUnit_Labels") == (["x"], []) and [p for _, p in tree.files("ActionUnit_Labels", "X")] == ["ActionUnit_Labels/x"]
    assert len(seen) == 1
