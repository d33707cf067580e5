"Own media through a run: rows in order, none lost, units in the names, and the head says what the run was trained on."
import json

import cv2
import numpy as np
import pandas as pd
import pytest

from au_study.datasets.media import open_media
from au_study.facs import schematic_face
from au_study.faces.landmarks import Detection
from au_study.study.cli import main
from au_study.study.detect import TrainedRun, detect, notes_of, open_run, read_scores, recipe_of, write_scores
from au_study.training.batches import blob_faces
from au_study.training.estimator import PriorEstimator


class Squares:
    "Bright squares are faces."
    def __init__(self, *args, **kwargs): pass
    def load(self): return self
    def detect(self, image):
        _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 100).astype(np.uint8))
        return [Detection(np.array([y, x, y + h - 1, x + w - 1], np.float32), (schematic_face(w - 1) + [x, y]).astype(np.float32), 1.0) for x, y, w, h, area in stats[1:] if area > 400]


class Pixels(PriorEstimator):
    "Scores that follow the picture; the context is what the test sets."
    offsets = (0,)
    def scores(self, module, batch):
        image = batch.image if batch.image.ndim == 4 else batch.image.mean(1)
        return image.mean((1, 2, 3))[:, None] + 0 * module.rate


def video(path, n=40, empty=(), size=(160, 120)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20, size)
    for i in range(n):
        image = np.zeros((size[1], size[0], 3), np.uint8)
        if i + 1 not in empty: image[20:100, 20 + i % 30:100 + i % 30] = 130 + 2 * (i % 50)
        writer.write(image)
    writer.release()
    return path


def trained(cls=PriorEstimator, **card): return TrainedRun("one", cls().fit(blob_faces(4, 20, seed=1)))


def test_every_frame_is_a_row_with_its_time(tmp_path):
    media, run = open_media(video(tmp_path / "a clip.avi", empty=(5, 6, 39))), trained()
    rows = pd.DataFrame(detect(media, run, Squares(), batch=7))
    assert rows["frame"].tolist() == list(range(1, 41))
    np.testing.assert_allclose(rows["time"], np.arange(40) / 20, atol=1e-6)
    assert rows.loc[rows["status"] == "no face", "frame"].tolist() == [5, 6, 39]
    assert rows.loc[rows["status"] != "ok", run.columns].isna().all(axis=None) and rows.loc[rows["status"] == "ok", run.columns].notna().all(axis=None)
    assert (rows.loc[rows["status"] == "ok", "landmark_quality"] > 0.9).all()


@pytest.mark.parametrize("offsets", [(0,), (-4, 0, 4), (-9, -3, 0)])
@pytest.mark.parametrize("empty", [(), (3, 4), tuple(range(8, 20))])
def test_batches_leave_no_trace_in_the_scores(tmp_path, offsets, empty):
    media, run = open_media(video(tmp_path / "clip.avi", 26, empty)), trained(type("Near", (Pixels,), {"offsets": offsets}))
    scores = [pd.DataFrame(detect(media, run, Squares(), batch=b))[run.columns].to_numpy() for b in (3, 7, 500)]
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[2], atol=1e-5)
    assert len(np.unique(scores[2][~np.isnan(scores[2])].round(4))) > 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["probability", "intensity", "pseudo_intensity"])
def test_files_name_the_unit_and_warn_of_the_world(tmp_path, suffix, kind):
    media, run = open_media(video(tmp_path / "clip.avi", 6)), trained()
    run.model.score_kind = kind
    write_scores(detect(media, run, Squares()), tmp_path / f"scores.{suffix}", notes_of(media, run, recipe_of(run)), run.columns, together=4)
    table, notes = read_scores(tmp_path / f"scores.{suffix}")
    assert list(table)[-1].startswith(kind + "_AU") and len(table) == 6
    assert "NEVER SEEN A PHOTOGRAPH" in notes["WARNING"] and notes["scores"].startswith(kind) and notes["source"] == "clip.avi"
    assert not any(str(tmp_path) in v for v in notes.values())


def test_a_broken_stream_leaves_no_file(tmp_path):
    def rows():
        yield from detect(open_media(video(tmp_path / "clip.avi", 6)), trained(), Squares())
        raise RuntimeError("the disk is gone")
    with pytest.raises(RuntimeError): write_scores(rows(), tmp_path / "scores.csv", {}, trained().columns)
    assert not list(tmp_path.glob("*scores*"))


def test_implausible_landmarks_are_not_scored(tmp_path):
    class Mirrored(Squares):
        def detect(self, image): return [Detection(d.box, d.landmarks[::-1].copy(), d.score) for d in super().detect(image)]
    rows = pd.DataFrame(detect(open_media(video(tmp_path / "clip.avi", 3)), trained(), Mirrored()))
    assert rows["status"].str.startswith("implausible landmarks: ").all() and rows["faces"].tolist() == [1, 1, 1]
    assert rows[trained().columns].isna().all(axis=None)


@pytest.fixture
def store(tmp_path):
    "A results folder with a trained run and a run that only predicts with its weights."
    model = trained(PriorEstimator).model
    for name, parent in (("prior-a-111", None), ("prior-b-222", "prior-a-111")):
        folder = tmp_path / "results/runs" / name
        if parent is None: model.save(folder / "weights")
        else: (folder / "weights").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"id": name, "estimator": "prior", "params": {}, "protocol": {"crop": "five-point"}, "parent": parent}))
        (folder / "metrics.json").write_text(json.dumps({"average": {"f1": 0.5}}))
    return tmp_path / "results"


def test_runs_are_found_by_id_beginning_and_path(store):
    assert open_run("prior-a", store).id == open_run(store / "runs/prior-a-111").id == "prior-a-111"
    child = open_run("prior-b-222", store)
    assert child.id == "prior-b-222" and child.columns == open_run("prior-a", store).columns
    with pytest.raises(ValueError, match="2 runs begin"): open_run("prior-", store)


def test_command(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("au_study.study.detect._detector", lambda args: Squares())
    video(tmp_path / "clip.avi", 12, empty=(2,))
    call = ["detect", str(tmp_path / "clip.avi"), "--run", "prior-a", "--results", str(store)]
    assert main([*call, "--out", str(tmp_path / "s.csv")]) == 0
    said = capsys.readouterr().out
    assert "NEVER SEEN A PHOTOGRAPH" in said and "12 frames, 11 ok, 1 no face" in said
    assert (tmp_path / "s.csv").read_text().startswith("# WARNING: ")
    assert main([*call, "--out", str(tmp_path / "t.parquet"), "--every", "4"]) == 0
    assert read_scores(tmp_path / "t.parquet")[0]["frame"].tolist() == [1, 5, 9]


@pytest.mark.parametrize("change, words", [({"--out": "a.txt"}, "suffix"), ({"--run": "none"}, "no run 'none'"), ({"--every": "0"}, "at least 1"),
                                           ({"media": "empty.avi"}, "0 bytes"), ({"media": "folder"}, "no pictures")])
def test_wrong_calls_end_in_a_sentence(store, tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "clip.avi", 2)
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    options = {"--run": "prior-a", "--out": "a.csv", "--results": str(store), **{k: v for k, v in change.items() if k != "media"}}
    assert main(["detect", change.get("media", "clip.avi"), *(x for pair in options.items() for x in pair)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.startswith("au-study: ") and not list(tmp_path.glob("a.*"))
