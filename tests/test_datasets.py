"""Real data end to end, on trees that the face world writes in each distributor's layout: labels exact, offsets exact, landmarks within the detector's error."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pandas as pd
import pytest

from au_study.datasets.base import open_dataset
from au_study.datasets.layouts import LAYOUTS, WILD_CROP, cohort, film, frame_of, plan_layout, take_landmarks, wild_missing, write_layout, write_script
from au_study.datasets.prepare import PrepareError, prepare
from au_study.facs import schematic_face
from au_study.faces.alignment import FivePointCrop, crop_faces, transform_points
from au_study.faces.frames import KEYS, label_columns, read_frames
from au_study.faces.landmarks import Detection, WorldDetector
from au_study.world import load_preset

SIZES = dict(subjects=3, frames=8, size=128, stride=30)  # every 30th frame of the world: many events in few pictures
PRESETS = {"bp4d": "bp4d", "fera2015": "bp4d", "bp4d_plus": "bp4d_plus", "disfa": "disfa", "affwild2": "affwild2"}
NAMES = {**PRESETS}  # layout -> data set

CASES = [  # layout, kind, options of the adapter
    ("bp4d", "occurrence", {}), ("bp4d", "intensity", {}), ("fera2015", "occurrence", {}), ("fera2015", "intensity", {}),
    ("bp4d_plus", "occurrence", {}), ("bp4d_plus", "intensity", {}),
    ("disfa", "intensity", dict(camera="left")), ("disfa", "intensity", dict(camera="right")), ("disfa", "intensity", dict(camera="both")),
    ("affwild2", "occurrence", dict(images="cropped_aligned")), ("affwild2", "occurrence", dict(images="video")),
]  # fmt: skip
named = lambda case: "-".join([case[0], case[1], *case[2].values()])


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    "The root of a layout's tree, written once a session; the folder's name has a space and letters beyond ASCII."
    made = {}

    def tree(layout):
        if layout not in made:
            made[layout] = write_layout(PRESETS[layout], layout, tmp_path_factory.mktemp("trees") / f"{layout} größe", progress=False, **SIZES)
        return made[layout]

    return tree


@cache
def plan(layout):
    "What a layout's tree was written from."
    clips = plan_layout(layout, SIZES["subjects"], frames=SIZES["frames"])
    return clips, write_script(load_preset(PRESETS[layout]), layout, clips, 0, SIZES["stride"])


def opened(trees, case):
    layout, kind, options = case
    return open_dataset(NAMES[layout], trees(layout), kind=kind, **options)


def takes_of(layout, dataset):
    "(clip, take, position in the clip) of each recording of a data set."
    found = {(t.subject, t.video): (c, t, k) for c in plan(layout)[0] for k, t in enumerate(c.takes) if t.coded and t.subject}
    return {r.key: (r, *found[r.key]) for r in dataset.recordings() if r.labels}


@pytest.mark.parametrize("case", CASES, ids=named)
def test_labels_come_back_exactly(trees, case):
    layout, kind, options = case
    truth = read_frames(trees(layout) / f"world_{kind}.parquet")
    if options.get("camera") in ("left", "right"): truth = truth[truth.video == options["camera"]]
    found = opened(trees, case).labels()
    columns = label_columns(found)
    assert set(columns) <= set(label_columns(truth)) and len(found) == len(truth) > 0
    lost = truth[[c for c in label_columns(truth) if c not in columns]]
    assert lost.isna().all(axis=None), f"coded columns that the adapter leaves out: {lost.columns[lost.notna().any()].tolist()}"
    wanted = truth.sort_values(list(KEYS)).reset_index(drop=True)[[*KEYS, *columns]]
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    coded = found[columns].to_numpy()
    assert (found[columns].nunique() > 1).sum() >= 3  # the comparison means something
    if kind == "occurrence" or layout != "disfa": assert np.isnan(coded).any()


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_recording_has_its_pictures_by_number(trees, case):
    layout, _, options = case
    dataset = opened(trees, case)
    _, script = plan(layout)
    takes = takes_of(layout, dataset)
    assert len(takes) == len(opened(trees, case).labels().groupby(["subject", "video"]))
    for recording, _, take, _ in takes.values():
        wanted = take.numbers[~wild_missing(script, take)] if options.get("images") == "cropped_aligned" else take.numbers
        assert np.array_equal(recording.media.numbers, wanted), recording.key
        assert not [p for p in recording.media.problems if p.severity == "error"]
        if layout in ("disfa", "affwild2") and options.get("images") != "cropped_aligned": assert recording.media.fps == LAYOUTS[layout].fps


def resembles(picture, made):
    "The number of the rendered picture that is most alike."
    return int(np.argmin([np.mean((picture.astype(float) - m) ** 2) for m in made]))


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == "occurrence" or c[0] == "disfa"], ids=named)
def test_the_picture_of_a_row_is_the_one_that_was_rendered_for_it(trees, case):
    layout, _, options = case
    dataset, (_, script) = opened(trees, case), plan(layout)
    seen = list(takes_of(layout, dataset).values())
    for recording, clip, take, place in seen[:: max(1, len(seen) // 2)][:3]:
        pair = len(clip.takes) > 1 and layout == "affwild2"
        sides = [list(film(script, t, frame_of(layout, SIZES["size"], pair))) for t in (clip.takes if pair else (take,))]
        pictures = [np.concatenate([p for _, p, _ in s]) for s in sides]
        made = np.concatenate(pictures, axis=2)
        if options.get("images") == "cropped_aligned":
            side = place if pair else 0
            made, _ = crop_faces(pictures[side], np.concatenate([m for _, _, m in sides[side]]), WILD_CROP)
        rows = [n for n in take.rows if n in set(recording.media.numbers)]
        for frame in recording.media.read(rows):
            assert frame.problem is None, (recording.key, frame)
            assert frame.image.shape == made.shape[1:] and frame.image.dtype == np.uint8
            assert resembles(frame.image, made) == frame.number - take.first, (recording.key, frame.number)


@pytest.mark.parametrize("layout", ["bp4d", "bp4d_plus", "disfa", "affwild2"])
def test_a_clean_tree_has_no_errors_and_is_synthetic(trees, layout):
    dataset = open_dataset(NAMES[layout], trees(layout))
    assert not [str(p) for p in dataset.problems if p.severity == "error"]
    card = dataset.card()
    assert card.synthetic
    assert all(card.folds), card.folds  # three subjects lie in three different test folds
    if layout == "affwild2": assert card.folds == (("1-30-1280x720",),)
    else: assert sorted(s for f in card.folds for s in f) == sorted(cohort(layout)[: SIZES["subjects"]])


def test_a_tree_without_world_json_is_real(trees, tmp_path):
    copy = shutil.copytree(trees("disfa"), tmp_path / "disfa", ignore=shutil.ignore_patterns("world*"))
    assert not open_dataset("disfa", copy).card().synthetic


def test_disfa_landmarks_belong_to_their_row(trees):
    dataset, (_, script) = open_dataset("disfa", trees("disfa"), camera="left"), plan("disfa")
    corners, shared = [60, 64], [i for i in range(68) if i not in (60, 64)]
    for recording, _, take, _ in takes_of("disfa", dataset).values():
        exact = take_landmarks(script, take, frame_of("disfa", SIZES["size"]))
        found = dataset.read_landmarks(recording, take.rows)
        absent = [int(n) for n in take.rows if found.get(int(n)) is None]
        assert absent == ([1 + take.length * 3 // 4] if take.subject == cohort("disfa")[1] else []), (take.subject, absent)
        for n in set(take.rows.tolist()) - set(absent):
            assert found[n].shape == (68, 2) and found[n].dtype == np.float32
            assert np.abs(found[n][shared] - exact[n - 1][shared]).max() < 2e-3, (take.subject, n)
            assert np.abs(found[n][corners] - exact[n - 1][corners]).max() < 0.05 * np.ptp(exact[n - 1], axis=0).max()


@pytest.mark.parametrize("layout", ["bp4d", "affwild2"])
def test_the_other_data_sets_ship_no_landmarks(trees, layout):
    dataset = open_dataset(NAMES[layout], trees(layout))
    assert dataset.read_landmarks(dataset.recordings()[0], [1]) is None


def test_a_tree_can_be_written_for_another_preset(tmp_path):
    root = write_layout("disfa", "bp4d", tmp_path / "tree", subjects=1, videos=1, frames=4, size=64, stride=50, progress=False)
    assert json.loads((root / "world.json").read_text())["preset"] == "disfa"
    pd.testing.assert_frame_equal(open_dataset("bp4d", root).labels()[["AU1", "AU12"]], read_frames(root / "world_occurrence.parquet")[["AU1", "AU12"]])


def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path):
    sizes = dict(subjects=3, frames=20, size=96, progress=False)
    code = f"from au_study.datasets.layouts import write_layout; write_layout('disfa', 'disfa', {str(tmp_path / 'a')!r}, **{sizes!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 240
    try:
        while not (begun := list(tmp_path.glob("a/Vid*/*.avi"))) and process.poll() is None and time.monotonic() < until: time.sleep(0.01)
    finally: process.send_signal(signal.SIGKILL), process.wait()
    assert begun and len(list(tmp_path.glob("a/Vid*/[LR]*.avi"))) < 6, "the writer ended before it could be killed: enlarge `sizes`"
    assert json.loads((tmp_path / "a/world.json").read_text())["complete"] is False
    roots = [write_layout("disfa", "disfa", tmp_path / n, **sizes) for n in "ab"]
    a, b = ({p.relative_to(r).as_posix(): p.read_bytes() for p in r.rglob("*") if p.is_file()} for r in roots)
    assert a == b and not [n for n in a if "/." in n]


# ------------------------------------------------------------------------------------------ world -> tree -> prepare -> FaceSet


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    "A landmark predictor of the world, trained in seconds; the shipped settings take minutes and err less."
    return WorldDetector(tmp_path_factory.mktemp("detector"), faces=120, trees=50, cascades=7, oversampling=8, size=144, test_faces=8)


def exact_landmarks(root, faces, size):
    "Exact landmarks of the rows of a FaceSet, in pixels of crops that were cut by them."
    known = np.load(root / "world_landmarks.npz")
    place = {k: dict(zip(known[f"{k}/numbers"].tolist(), known[k], strict=True)) for k in known.files if not k.endswith("/numbers")}
    marks = np.stack([place[f"{s}/{v}"][n] for s, v, n in faces.frames[list(KEYS)].itertuples(index=False)])
    return transform_points(FivePointCrop(size).matrices(marks), marks.astype(float))


def check_faceset(prepared, root, kind, size):
    "Labels exact, nothing lost; returns the error of the landmarks [N, 68] in eye distances, after alignment."
    faces, truth = prepared.faces, read_frames(root / f"world_{kind}.parquet").set_index(list(KEYS))
    columns = label_columns(faces.frames)
    keys = faces.frames.set_index(list(KEYS)).index
    pd.testing.assert_frame_equal(faces.frames.set_index(list(KEYS))[columns], truth.loc[keys, columns], check_dtype=False)
    aside = prepared.quarantine.set_index(list(KEYS)).index
    assert len(keys) + len(aside) == prepared.recordings["frames"].sum() and not keys.intersection(aside).size and keys.union(aside).isin(truth.index).all()
    assert (prepared.recordings["frames"] == prepared.recordings["kept"] + prepared.recordings[[c for c in prepared.recordings if c in set(prepared.quarantine.reason)]].sum(axis=1)).all()
    assert faces.crops.shape == (len(keys), size, size, 3) and faces.card.synthetic
    exact = exact_landmarks(root, faces, size)
    eyes = np.linalg.norm(exact[:, 36:42].mean(1) - exact[:, 42:48].mean(1), axis=-1)
    return np.linalg.norm(faces.landmarks - exact, axis=-1) / eyes[:, None]


def test_disfa_becomes_a_faceset_by_its_own_landmarks(trees, tmp_path):
    prepared = prepare(open_dataset("disfa", trees("disfa")), tmp_path / "out", size=96, jobs=0, progress=False)
    error = check_faceset(prepared, trees("disfa"), "intensity", 96)
    assert np.delete(error, [60, 64], axis=1).max() < 0.005
    assert prepared.quarantine[["subject", "frame", "reason"]].to_numpy().tolist() == [[cohort("disfa")[1], 1 + SIZES["frames"] * 3 // 4, "no landmarks"]]


def test_both_cameras_of_disfa_are_found_by_one_detector(trees, tmp_path, detector, monkeypatch):
    "The owner's landmarks are those of the left film; they must not put the right one into quarantine."
    monkeypatch.setattr("au_study.datasets.prepare.WorldDetector", lambda: detector)
    dataset = open_dataset("disfa", trees("disfa"), camera="both")
    prepared = prepare(dataset, tmp_path / "out", size=96, jobs=0, progress=False)
    assert json.loads((prepared.folder / "prepare.json").read_text())["settings"]["detector"].startswith("world/")
    assert check_faceset(prepared, trees("disfa"), "intensity", 96).mean() < 0.08
    assert (prepared.recordings.groupby("video")[["kept", "frames"]].sum().eval("kept / frames") > 0.9).all() and not prepared.lost_subjects
    with pytest.raises(PrepareError, match="ships landmarks for left, but none for right. Use detector='world'"): prepare(dataset, tmp_path / "given", detector="given", progress=False)


def test_landmark_files_are_part_of_the_source(trees, tmp_path, monkeypatch):
    copy, who = shutil.copytree(trees("disfa"), tmp_path / "disfa"), cohort("disfa")[0]
    call = lambda: prepare(open_dataset("disfa", copy), tmp_path / "out", size=32, subjects=[who], jobs=0, progress=False)
    file = next((copy / "Landmark_Points" / who).rglob("*_lm.mat"))
    aside = shutil.move(file, tmp_path / file.name)
    assert call().quarantine["reason"].tolist() == ["no landmarks"] and call().reused == 1
    shutil.move(aside, file)
    with pytest.raises(PrepareError, match=rf"out was prepared differently: 1 recordings \({who} left\) were added, removed or changed since"): call()
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("au_study.datasets.prepare._assemble", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): call()
    file.write_bytes(bytes(reversed(file.read_bytes())))  # as long as before
    with pytest.raises(PrepareError, match="out.preparing was begun differently"): call()


@pytest.mark.parametrize("layout, kind", [("bp4d", "occurrence"), ("bp4d_plus", "intensity")])
def test_bp4d_becomes_a_faceset_by_found_landmarks(trees, tmp_path, detector, layout, kind, record_property):
    prepared = prepare(open_dataset(NAMES[layout], trees(layout), kind=kind), tmp_path / "out", size=96, detector=detector, jobs=0, progress=False)
    error = check_faceset(prepared, trees(layout), kind, 96)
    record_property("landmark_error_in_eye_distances", float(error.mean()))
    print(f"{layout}: landmarks err by {error.mean():.3f} eye distances on average, {np.quantile(error, 0.95):.3f} at the 95th percentile")
    print(prepared)
    assert error.mean() < 0.08 and prepared.quarantined < 0.1 * len(error)


def test_affwild2_pairs_become_two_people(tmp_path, detector):
    root = write_layout(PRESETS["affwild2"], "affwild2", tmp_path / "large", progress=False, **{**SIZES, "size": 224})   # both turn: in small pictures only one is found
    prepared = prepare(open_dataset("affwild2", root, images="video"), tmp_path / "out", size=96, detector=detector, several="side", jobs=0, progress=False)
    error = check_faceset(prepared, root, "occurrence", 96)
    assert error.mean(1).max() < 0.3, "the other person of the video was taken"
    assert {"video1_left", "video1_right"} <= set(prepared.faces.subjects)


class RightFace:
    "Finds a face in the right half of a picture, and none in the left one."
    id = "right/v1"

    def detect(self, image, key=None):
        side, x = image.shape[0] / 2, image.shape[1] * 3 / 4
        box = np.array([side / 2, x - side / 2, side * 3 / 2, x + side / 2], np.float32)
        return [Detection(box, schematic_face(side) + box[[1, 0]], 1.0)]


@pytest.mark.parametrize("several", ["quarantine", "side"])
def test_the_one_face_that_was_found_is_not_given_to_both_people(trees, tmp_path, several):
    dataset = open_dataset("affwild2", trees("affwild2"), images="video")
    with pytest.warns(UserWarning, match="video1_left"): prepared = prepare(dataset, tmp_path / "out", size=32, detector=RightFace(), several=several, jobs=0, progress=False)
    kept = prepared.recordings.set_index("video")[["frames", "kept"]]
    assert kept.loc["video1_left", "kept"] == 0 and kept.loc["video1_right"].nunique() == 1
    assert kept.drop("video1_left").eval("frames == kept").all()  # one person alone may be anywhere
    assert set(prepared.quarantine["reason"]) == {"no face"} and set(prepared.quarantine["detail"]) == {"the only face is in the right half of the picture, the person in the left one"}
