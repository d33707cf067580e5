"""Preparation under attack: kills at random moments, dead workers, two writers, planted faults, long videos. No licensed data, no detector weights."""

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest

from au_study.datasets import prepare as module
from au_study.datasets.base import Recording
from au_study.datasets.media import ImageFolder
from au_study.datasets.prepare import PrepareError, prepare
from au_study.datasets.quality import IMPLAUSIBLE, MISSING, NO_FACE, NO_LANDMARKS, TWO_FACES, UNREADABLE
from au_study.facs import schematic_face
from au_study.faces import DatasetCard, FaceSet
from au_study.faces.frames import KEYS
from au_study.faces.landmarks import Detection

SIDE, SUBJECTS, VIDEOS, FRAMES = 120, ("A", "B", "C"), ("T1", "T2"), 40


def marks_of(subject, video, number):
    "Landmarks that move a little from frame to frame."
    return schematic_face(70) + [20 + number % 7, 15 + (ord(subject) + number) % 5]


def draw(folder, subjects=SUBJECTS, videos=VIDEOS, frames=FRAMES, side=SIDE):
    "Folders of small pictures, each different, and a card."
    rng = np.random.default_rng(0)
    for s in subjects:
        for v in videos:
            (folder / s / v).mkdir(parents=True)
            base = cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
            for n in range(1, frames + 1):
                picture = np.roll(base, 3 * n, axis=1)
                for x, y in marks_of(s, v, n): cv2.circle(picture, (round(x), round(y)), 1, (255, 255, 255), -1)
                cv2.imwrite(str(folder / s / v / f"{n:03d}.jpg"), picture)
    return folder


class Slow(ImageFolder):
    "Pictures that take their time; while the file stands that PREPARE_HELD names, they don't come at all."
    def read(self, numbers=None, reduce=None):
        for frame in super().read(numbers, reduce):
            while (held := os.environ.get("PREPARE_HELD")) and os.path.exists(held): time.sleep(.01)
            time.sleep(.004)
            yield frame


class Folders:
    "subject/video/number.jpg with labels and landmarks by rule; changes are made by setting attributes."
    name, columns, problems, label_folders = "folders", ["AU1", "AU12"], [], ()

    def __init__(self, root, media=ImageFolder, frames=FRAMES, marks=True):
        self.root, self.media, self.frames, self.marks = Path(root), media, frames, marks
        self.changed_marks, self.changed_labels, self.deadly = {}, {}, None

    def recordings(self):
        return [Recording(s.name, v.name, ("by rule",), self.media(v, self.root)) for s in sorted(self.root.iterdir()) for v in sorted(s.iterdir())]

    def read_labels(self, r):
        n = np.arange(1, self.frames + 1)
        table = pd.DataFrame(dict(subject=r.subject, video=r.video, frame=n, AU1=(n % 6).astype(float), AU12=np.where(n % 9, n % 4, np.nan)))
        for (subject, video, frame), value in self.changed_labels.items():
            if (subject, video) == r.key: table.loc[table.frame == frame, "AU1"] = value
        return table, []

    def landmark_problems(self, r, numbers=None): return []

    def read_landmarks(self, r, numbers):
        if not self.marks: return None
        if self.deadly and self.deadly.exists() and len(numbers) > 1 and r.key == ("B", "T1"):
            time.sleep(.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return {int(n): self.changed_marks.get((*r.key, int(n)), marks_of(*r.key, int(n))) for n in numbers}

    def card(self, aus=None, threshold=None, split=None):
        return DatasetCard("folders", "Folders", aus or (1, 12), threshold or 2, "intensity", 25, (("A",), ("B", "C")), True, "drawn")


OPTIONS = dict(size=40, jobs=2, progress=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory): return draw(tmp_path_factory.mktemp("tree ü"))


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    "The bytes of an uninterrupted preparation."
    return files(prepare(Folders(tree), tmp_path_factory.mktemp("whole") / "set", **OPTIONS).folder)


def files(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


PROGRAM = """
import signal, sys, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[3])
from test_prepare import Folders, OPTIONS, Slow
from au_study.datasets.prepare import prepare
print("begin", flush=True)
prepare(Folders(sys.argv[1], Slow), sys.argv[2], **OPTIONS)
print("end", flush=True)
"""


def begin(tree, out, mark, held=""):
    "A process that prepares, known by a mark in its environment; returns when it begins. It waits while a file `held` is there."
    if held: held.touch()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tree), str(out), os.path.dirname(__file__)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, "PREPARE_MARK": mark, "PREPARE_HELD": str(held)})
    assert process.stdout.readline() == b"begin\n", process.stderr.read().decode()
    return process


def alive(mark):
    "Processes with the mark that still run."
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("PREPARE_MARK") == mark and p.status() != psutil.STATUS_ZOMBIE: found.append(p)
        except psutil.Error: continue
    return found


def gone(mark, patience=5.0):
    "Whether all processes with the mark end by themselves."
    end = time.monotonic() + patience
    while time.monotonic() < end and alive(mark): time.sleep(.02)
    return not alive(mark)


def test_a_kill_at_any_moment_changes_no_byte(tree, whole, tmp_path):
    draws, longest, reused = random.Random(3), 0.0, []
    for i in range(8):
        mark, out = uuid.uuid4().hex, tmp_path / f"set{i}"
        process, start = begin(tree, out, mark), time.monotonic()
        if i == 0: process.wait(); longest = time.monotonic() - start  # how long it takes undisturbed
        else: time.sleep(draws.uniform(0, longest)); process.kill(); process.wait()
        assert gone(mark), "workers outlive their parent"
        if out.exists(): assert files(out) == whole  # whole or not at all
        result = prepare(Folders(tree), out, **OPTIONS)
        assert files(result.folder) == whole and not out.with_name(out.name + ".preparing").exists()
        reused.append(result.reused)
    assert any(0 < r < 6 for r in reused), f"no kill fell between two recordings: {reused}"


def test_killed_again_and_again_it_still_ends(tree, whole, tmp_path):
    out, kills = tmp_path / "set", 0
    while not out.exists() and kills < 6:       # each is given a little longer than the one before
        mark = uuid.uuid4().hex
        process = begin(tree, out, mark)
        time.sleep(.2 + .1 * kills); process.kill(); process.wait(); kills += 1
        assert gone(mark)
    prepare(Folders(tree), out, **OPTIONS)
    assert files(out) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_leaves_no_process(tree, whole, tmp_path, number):
    mark = uuid.uuid4().hex
    process = begin(tree, tmp_path / "set", mark, tmp_path / "held")     # or a fast machine is done before it is asked
    end = time.monotonic() + 20
    while len(alive(mark)) < 3 and time.monotonic() < end: time.sleep(.01)
    assert len(alive(mark)) == 3  # two workers
    process.send_signal(number); process.wait(10)
    assert process.returncode != 0 and gone(mark)
    assert files(prepare(Folders(tree), tmp_path / "set", **OPTIONS).folder) == whole


def test_a_dead_worker_is_named_and_nothing_is_lost(tree, whole, tmp_path):
    data = Folders(tree)
    data.deadly = tmp_path / "deadly"
    data.deadly.touch()
    with pytest.raises(PrepareError, match="worked on folders B T1 was killed by SIGKILL.*memory.*kept in set.preparing.*fewer jobs"): prepare(data, tmp_path / "set", **OPTIONS)
    kept = sorted(p.name for p in (tmp_path / "set.preparing/parts").iterdir())
    assert kept and "00002.npz" not in kept
    data.deadly.unlink()
    result = prepare(data, tmp_path / "set", **OPTIONS)
    assert result.reused == len(kept) and files(result.folder) == whole


def test_a_second_writer_is_refused(tree, tmp_path):
    mark = uuid.uuid4().hex
    process = begin(tree, tmp_path / "set", mark, tmp_path / "held")
    deadline = time.monotonic() + 10
    while not (tmp_path / "set.preparing/plan.json").exists() and time.monotonic() < deadline: time.sleep(.01)
    with pytest.raises(PrepareError, match=f"Another process .*process {process.pid}.* is preparing set"): prepare(Folders(tree), tmp_path / "set", **OPTIONS)
    (tmp_path / "held").unlink()
    assert process.wait(60) == 0
    assert prepare(Folders(tree), tmp_path / "set", **OPTIONS).reused == 6


def test_any_number_of_processes_and_spawned_ones_give_the_same_bytes(tree, whole, tmp_path, monkeypatch):
    for jobs in (0, 1, 5): assert files(prepare(Folders(tree), tmp_path / f"set{jobs}", **{**OPTIONS, "jobs": jobs}).folder) == whole
    monkeypatch.setattr(module, "run_jobs", functools.partial(module.run_jobs, method="spawn"))
    assert files(prepare(Folders(tree), tmp_path / "spawned", **OPTIONS).folder) == whole


def test_other_settings_or_sources_are_not_continued(tree, tmp_path, monkeypatch):
    data, out = Folders(tree), tmp_path / "set"
    monkeypatch.setattr(module, "_assemble", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): prepare(data, out, **OPTIONS)
    monkeypatch.undo()
    for option, value in dict(size=44, stride=2, carry=1, recipe="eye-line", several="largest", exact=True, border=7, subjects=["A"], threshold=3).items():
        with pytest.raises(PrepareError, match="set.preparing was begun differently.*(there and|recordings).*delete the folder"):
            prepare(data, out, **{**OPTIONS, option: value})
    data.changed_labels["A", "T1", 3] = 5
    with pytest.raises(PrepareError, match=r"1 recordings \(A T1\) were added, removed or changed since"): prepare(data, out, **OPTIONS)
    data.changed_labels.clear()
    picture = tree / "A/T1/004.jpg"
    before, stat = picture.read_bytes(), picture.stat()
    picture.write_bytes(before[::-1])
    with pytest.raises(PrepareError, match=r"\(A T1\)"): prepare(data, out, **OPTIONS)
    picture.write_bytes(before); os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert prepare(data, out, **OPTIONS).reused == 6
    with pytest.raises(PrepareError, match="set was prepared differently: size is 40 there and 44 here.*Delete it"): prepare(data, out, **{**OPTIONS, "size": 44})


def test_what_was_torn_meanwhile_is_prepared_again(tree, whole, tmp_path, monkeypatch):
    "As after a power failure: books without their crops, and books without their content."
    monkeypatch.setattr(module, "_assemble", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): prepare(Folders(tree), tmp_path / "set", **OPTIONS)
    monkeypatch.undo()
    place = tmp_path / "set.preparing"
    with open(place / "crops.part", "r+b") as f: f.seek(module.HEADER + 45 * 40 * 40 * 3); f.write(bytes(999))  # in the second recording
    (place / "parts/00004.npz").write_bytes(b"")
    book = (place / "parts/00005.npz").read_bytes()
    (place / "parts/00005.npz").write_bytes(book[:len(book) // 2])
    result = prepare(Folders(tree), tmp_path / "set", **OPTIONS)
    assert result.reused == 3 and files(result.folder) == whole


def test_a_long_recording_is_cut_into_pieces(tmp_path, monkeypatch):
    root, said = draw(tmp_path / "tree", subjects=("A",), videos=("T1",), frames=300), {}
    for n in (5, 130, 131, 290, 291): (root / f"A/T1/{n:03d}.jpg").write_bytes(b"")
    data = Folders(root, frames=300)
    data.changed_marks["A", "T1", 200] = None
    for name, options in dict(two={}, alone=dict(jobs=0), procrustes=dict(recipe="procrustes")).items():
        said[name] = prepare(data, tmp_path / name, **{**OPTIONS, **options})
        assert said[name].quarantine.frame.tolist() == [5, 130, 131, 200, 290, 291] and said[name].recordings.kept.tolist() == [294]
    assert files(tmp_path / "two") == files(tmp_path / "alone")
    monkeypatch.setattr(module, "PIECE", 1000)
    assert files(prepare(data, tmp_path / "whole", **OPTIONS).folder) == files(tmp_path / "two")  # the cuts are not seen in the result


def test_a_full_disk_is_told_before(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: argparse.Namespace(free=10 ** 6))
    with pytest.raises(PrepareError, match=r"The crops take up to 0.00115 GB and the disk of set.preparing has 0.001 GB left. Free space"): prepare(Folders(tree), tmp_path / "set", **OPTIONS)


def test_planted_faults_land_in_quarantine(tmp_path):
    root = draw(tmp_path / "tree", subjects=("A",), frames=12)
    data, folder = Folders(root, frames=14), root / "A/T1"  # two labels more than pictures
    (folder / "002.jpg").write_bytes((folder / "002.jpg").read_bytes()[:700])
    (folder / "003.jpg").write_bytes(b"")
    (folder / "004.jpg").unlink()
    (folder / "5.png").write_bytes(b"x")  # beside 005.jpg
    nan = marks_of("A", "T1", 7).copy()
    nan[3] = np.nan
    data.changed_marks = {("A", "T1", 6): None, ("A", "T1", 7): nan, ("A", "T1", 8): marks_of("A", "T1", 8) * [-1, 1] + [SIDE - 1, 0],
                          ("A", "T1", 9): marks_of("A", "T1", 9) + 400, ("A", "T1", 10): marks_of("A", "T1", 10) * .02, ("A", "T1", 11): np.full((68, 2), np.nan)}
    result = prepare(data, tmp_path / "set", **OPTIONS)
    first = result.quarantine[result.quarantine.video == "T1"].set_index("frame")
    assert first.reason.to_dict() == {2: UNREADABLE, 3: UNREADABLE, 4: MISSING, 5: UNREADABLE, 6: NO_LANDMARKS, 7: IMPLAUSIBLE, 8: IMPLAUSIBLE, 9: IMPLAUSIBLE,
                                      10: IMPLAUSIBLE, 11: NO_LANDMARKS, 13: MISSING, 14: MISSING}
    for frame, word in {2: "cut off", 3: "0 bytes", 5: "claim", 7: "1 of 68", 8: "form a face", 9: "outside the image", 10: "pixels apart"}.items(): assert word in first.detail[frame]
    assert result.recordings[["frames", "kept"]].values.tolist() == [[14, 2], [14, 12]]
    assert result.kept + result.quarantined == 28 and len(result.faces) == 14
    assert result.faces.frames.frame.tolist()[:2] == [1, 12]
    truth = data.read_labels(data.recordings()[0])[0].set_index("frame")
    np.testing.assert_array_equal(result.faces.frames.set_index("frame").iloc[:2][["AU1", "AU12"]], truth.loc[[1, 12], ["AU1", "AU12"]])
    assert FaceSet.load(result.folder, verify=True).fingerprint == result.faces.fingerprint  # rows were moved together
    again = prepare(data, tmp_path / "few", **{**OPTIONS, "subjects": ["A"], "jobs": 0})
    assert np.array_equal(np.asarray(again.faces.crops), np.asarray(result.faces.crops))


class Boxes:
    "Real boxes of dlib, with the schematic face in each; blind in chosen pictures."
    id = "boxes/v1"

    def detect(self, image, key=None):
        from au_study.faces.landmarks import frontal_boxes
        return [Detection(box, schematic_face(float(box[2] - box[0])) + box[[1, 0]], score) for box, score in frontal_boxes(image)]


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    "A: one face; B: none at all; C: two faces in frame 2, none in frames 4 and 5."
    pytest.importorskip("dlib")
    torch = pytest.importorskip("torch")
    from au_study.world.identity import identities
    from au_study.world.renderer import Scene, render_faces
    one = render_faces(identities([4]), torch.zeros(1, 17), Scene.neutral(1), size=160).images[0].numpy()[..., ::-1]
    wall, root = np.full((160, 160, 3), 120, np.uint8), tmp_path_factory.mktemp("portraits")
    for subject, pictures in dict(A=[one] * 6, B=[wall] * 6, C=[one, np.concatenate([one, one], 1), one, wall, wall, one]).items():
        (root / subject / "T1").mkdir(parents=True)
        for n, p in enumerate(pictures, 1): cv2.imwrite(str(root / subject / "T1" / f"{n}.jpg"), p)
    return root


def test_no_face_two_faces_and_a_subject_who_is_lost(portraits, tmp_path):
    data = Folders(portraits, frames=6, marks=False)
    with pytest.warns(UserWarning, match="None of the frames of B"): result = prepare(data, tmp_path / "set", detector=Boxes(), **OPTIONS)
    assert result.quarantine[["subject", "frame", "reason"]].values.tolist() == [*(["B", n, NO_FACE] for n in range(1, 7)), ["C", 2, TWO_FACES], ["C", 4, NO_FACE], ["C", 5, NO_FACE]]
    assert "2 faces" in result.quarantine.detail[6]
    assert result.lost_subjects == ("B",) and result.faces.subjects == ["A", "C"] and result.faces.card.folds == (("A",), ("C",))
    assert "NOT IN THE FACESET" in str(result) and json.loads((result.folder / "prepare.json").read_text())["lost_subjects"] == ["B"]
    with pytest.raises(PrepareError, match="None of 6 frames could be used: 6 no face"): prepare(data, tmp_path / "b", detector=Boxes(), subjects=["B"], **OPTIONS)
    with pytest.raises(PrepareError, match="None of 6 frames could be used"): prepare(data, tmp_path / "b", detector=Boxes(), subjects=["B"], **OPTIONS)


def test_carried_landmarks_are_marked_and_only_when_asked(portraits, tmp_path):
    data = Folders(portraits, frames=6, marks=False)
    result = prepare(data, tmp_path / "set", detector=Boxes(), subjects=["C"], carry=1, **OPTIONS)
    assert result.quarantine[["frame", "reason"]].values.tolist() == [[2, TWO_FACES]]
    assert result.faces.frames.carried.tolist() == [0, 0, -1, 1, 0] and result.recordings.carried.tolist() == [2]
    near = {n: result.faces.landmarks[i] for i, n in enumerate(result.faces.frames.frame)}
    assert np.array_equal(near[4], near[3]) and np.array_equal(near[5], near[6])
    assert "carried" not in prepare(data, tmp_path / "none", detector=Boxes(), subjects=["C"], **OPTIONS).faces.frames
    two = prepare(data, tmp_path / "mean", detector=Boxes(), subjects=["C"], carry=1, recipe="procrustes", **OPTIONS)
    assert two.faces.frames.carried.tolist() == [0, 0, -1, 1, 0]
    largest = prepare(data, tmp_path / "largest", detector=Boxes(), subjects=["C"], several="largest", **OPTIONS)
    assert largest.faces.frames.frame.tolist() == [1, 2, 3, 6]


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[3])
from test_prepare import Folders, OPTIONS
from au_study.datasets.prepare import prepare
result = prepare(Folders(sys.argv[1], frames=int(sys.argv[4])), sys.argv[2], **{**OPTIONS, "size": 160, "jobs": 1})
print(result.kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_video(tmp_path):
    root, peaks = draw(tmp_path / "tree", subjects=("A",), videos=("T1",), frames=100, side=300), []
    for n in range(101, 1001): os.link(root / f"A/T1/{(n - 1) % 100 + 1:03d}.jpg", root / f"A/T1/{n}.jpg")
    for frames in (100, 1000):
        said = subprocess.run([sys.executable, "-c", MEMORY, str(root), str(tmp_path / str(frames)), os.path.dirname(__file__), str(frames)], capture_output=True, text=True)
        assert not said.returncode, said.stderr
        kept, *kilobytes = map(int, said.stdout.split())
        assert kept == frames
        peaks.append(kilobytes)
    growth = (np.array(peaks[1]) - peaks[0]) / 1024  # 900 crops of 160 pixels are 69 MB
    assert (growth < 12).all(), f"parent and worker grew by {growth.round(1)} MB"


def test_the_command(tree, tmp_path, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    monkeypatch.setenv("AU_STUDY_CACHE", str(tmp_path / "cache"))
    opened = []
    monkeypatch.setattr("au_study.study.config.open_known", lambda name, root=None, **options: opened.append((name, root, options)) or Folders(tree))
    call = ["folders", str(tree), "--out", str(tmp_path / "set"), "--size", "32", "--jobs", "2", "--stride", "5", "--subjects", "A", "C", "--aus", "12", "--threshold", "3", "--quiet"]
    assert module.run(parser.parse_args(call)) == 0
    said = capsys.readouterr().out
    assert "32 frames of 4 recordings = 32 kept + 0 quarantined" in said and "threshold" in said
    faces = FaceSet.load(tmp_path / "set")
    assert (len(faces), faces.aus, faces.card.threshold, faces.size, faces.subjects) == (32, (12,), 3.0, 32, ["A", "C"])
    more = ["--option", "first_image=0", "--option", "camera=both", "--kind", "intensity", "--border", "128"]
    assert module.run(parser.parse_args(["folders", *call[2:3], str(tmp_path / "known"), *call[4:], *more])) == 0  # without a root: the one that is known
    assert opened == [("folders", str(tree), {}), ("folders", None, dict(first_image=0, camera="both", kind="intensity"))]
    assert json.loads((tmp_path / "known/prepare.json").read_text())["settings"]["border"] == 128
    for option, wrong in (("--aus", "x"), ("--border", "256")):
        with pytest.raises(PrepareError, match=f"{option} is '{wrong}'"): module.run(parser.parse_args([*call[:4], option, wrong]))


def test_recipes_and_detectors_by_name(tree, tmp_path):
    data = Folders(tree)
    for recipe in module.RECIPES:
        faces = prepare(data, tmp_path / recipe, recipe=recipe, subjects=["A"], stride=8, **OPTIONS).faces
        assert (len(faces), faces.size) == (10, 40)
        inside = (faces.landmarks[:, 27:] > 0).all() and (faces.landmarks[:, 27:] < 40).all()
        assert inside, recipe
    for wrong, sentence in ((dict(recipe="tight"), "there are five-point"), (dict(detector="retina"), "there are auto"), (dict(detector="dlib"), "needs a dlib shape predictor"),
                            (dict(subjects=["Z"]), "no labels of the subjects Z"), (dict(stride=0), "stride is 0")):
        with pytest.raises(PrepareError, match=sentence): prepare(data, tmp_path / "wrong", **{**OPTIONS, **wrong})
    assert list(KEYS) == faces.frames.columns.tolist()[:3]
