"Mixtures of data sets: estimators train on them as on any FaceSet, masks hold to the weights, nothing is copied or crosses from set to set."
from dataclasses import replace

import numpy as np
import pytest
import torch

from au_study.au_rcnn.estimator import AURCNN
from au_study.faces.faceset import CropView, FaceSet, FaceSetError
from au_study.faces.mixture import JoinedCrops, mix, part
from au_study.training.batches import BatchSource, blob_faces
from au_study.training.estimator import PriorEstimator
from au_study.training.loop import Trainer, _selection_sets


def relabelled(faces, name, aus, kind="occurrence", threshold=1, seed=0, **card):
    "The same faces with labels of another scheme."
    table, rng = faces.frames[["subject", "video", "frame"]].copy(), np.random.default_rng(seed)
    for a in aus:
        table[f"AU{a}"] = rng.integers(0, 6 if kind == "intensity" else 2, len(table)).astype(float)
    return FaceSet(table, faces.crops, faces.landmarks, replace(faces.card, name=name, title=name, aus=aus, kind=kind, threshold=threshold, **card))


@pytest.fixture(scope="module")
def sets():
    "Intensity from two, occurrence from a third, as in Pairwise (Sec. IV-A)."
    faces = blob_faces(subjects=4, frames=6, size=32)
    return {"bp4d": relabelled(faces, "bp4d", (6, 12), "intensity", 1), "disfa": relabelled(faces, "disfa", (1, 12), "intensity", 2, seed=1),
            "wild": relabelled(faces, "wild", (1, 25), seed=2)}


def test_prior_and_a_network_train_on_a_mixture(sets, tmp_path):
    mixture = mix({name: sets[name] for name in ("disfa", "wild")})
    train, test = mixture.fold(0)
    prior = PriorEstimator().fit(train).predict_scores(test)
    for a in mixture.aus:
        labels = np.concatenate([f.fold(0)[0].frames[f"AU{a}"] >= f.card.threshold for n, f in sets.items() if n != "bp4d" and a in f.aus])
        assert prior[f"AU{a}"].unique() == pytest.approx([labels.mean()])
    model = AURCNN("resnet18", .125, .5, stride=8, roi_size=3, trainer=Trainer(epochs=1, batch_size=8, lr=.01, selection="inner", inner_fraction=.3, device="cpu", progress=False))
    scores = model.fit(train).predict_scores(test)
    assert list(scores.columns[3:]) == ["AU1", "AU12", "AU25"] and scores["subject"].tolist() == test.frames["subject"].tolist()
    assert np.isfinite(scores[mixture.columns].to_numpy()).all()
    model.save(tmp_path / "model")
    assert AURCNN.load(tmp_path / "model").predict_scores(test).equals(scores)


def test_uncoded_cells_have_no_gradient(sets):
    mixture = mix({name: sets[name] for name in ("disfa", "wild")})
    batch = BatchSource(mixture).batch(np.arange(0, len(mixture), 5))
    model = AURCNN("resnet18", .125, .5, stride=8, roi_size=3)
    loss = lambda labels: float(model.loss(module, type(batch)(batch.image, batch.landmarks, labels, batch.intensities, batch.rows)).detach())
    torch.manual_seed(0)
    module = model.build(mixture).eval()
    assert batch.labels.isnan().any() and np.isfinite(loss(batch.labels))
    assert loss(batch.labels) != loss(torch.nan_to_num(batch.labels, nan=0.0))  # uncoded is not negative


def test_intensity_from_two_and_occurrence_from_a_third(sets):
    mixture = mix(sets)
    batch = BatchSource(mixture).batch(np.arange(len(mixture)))
    rows = {name: mixture.frames["subject"].str.startswith(name + "/").to_numpy() for name in sets}
    for name, faces in sets.items():
        for k, a in enumerate(mixture.aus):
            coded = faces.frames[f"AU{a}"].to_numpy() if a in faces.aus else np.full(len(faces), np.nan)
            np.testing.assert_array_equal(batch.labels.numpy()[rows[name], k], np.where(np.isnan(coded), np.nan, coded >= faces.card.threshold))
            np.testing.assert_array_equal(batch.intensities.numpy()[rows[name], k], coded if faces.card.kind == "intensity" else np.nan * coded)


@pytest.mark.parametrize("key", [slice(5, 60, 7), [0, 23, 24, 47, 71], slice(20, 30)])
def test_slices_of_a_mixture_copy_no_pixels_and_hold_the_right_ones(sets, key):
    mixture = mix(sets)
    whole = np.asarray(mixture.crops)
    view = mixture[key].crops
    assert isinstance(view, CropView) and isinstance(view.source, JoinedCrops)
    rows = np.arange(len(mixture))[key]
    assert np.array_equal(np.asarray(view), whole[rows]) and np.array_equal(view[1], whole[rows[1]]) and np.array_equal(view[-1, :4], whole[rows[-1], :4])


def test_same_subject_names_stay_different_people(sets):
    mixture = mix(sets)
    assert len(mixture.subjects) == 3 * len(sets["wild"].subjects)
    for offset in (-40, -1, 2, 40):
        assert (mixture.frames["subject"].to_numpy()[mixture.neighbours(offset)] == mixture.frames["subject"]).all()
    assert set(part(mixture, "wild").subjects) == {f"wild/{s}" for s in sets["wild"].subjects}


def test_order_of_the_sets_changes_nothing(sets):
    assert mix(sets).fingerprint == mix(dict(reversed(sets.items()))).fingerprint == mix(list(sets.values())).fingerprint


def test_a_saved_mixture_is_the_same_and_damage_is_named(sets, tmp_path):
    mixture = mix(sets)
    folder = mixture.save(tmp_path / "all")
    loaded = FaceSet.load(folder, verify=True)
    assert loaded.fingerprint == mixture.fingerprint and loaded.card == mixture.card
    np.testing.assert_array_equal(loaded.intensities(), mixture.intensities())
    (folder / "frames.parquet").write_bytes(b"x")
    with pytest.raises(FaceSetError, match="frames.parquet"):
        FaceSet.load(folder)


def test_one_licensed_part_makes_the_mixture_licensed(sets):
    licensed = relabelled(sets["wild"], "wild", (1, 25), synthetic=False, licence="by agreement", publishable=("listed subjects",))
    card = mix({"bp4d": sets["bp4d"], "wild": licensed}).card
    assert (card.synthetic, card.publishable) == (False, ("wild: listed subjects",)) and "by agreement" in card.licence


def test_memory_maps_are_not_read(tmp_path):
    "Mixing two sets of 14 MB each, splitting and reading a few faces takes no 14 MB."
    import tracemalloc
    faces = blob_faces(subjects=2, frames=256, size=96)
    saved = [FaceSet.load(replace_name(faces, name).save(tmp_path / name)) for name in ("a", "b")]
    tracemalloc.start()
    mixture = mix(saved)
    train, test = mixture.fold(0)
    train.crops[[3, 400]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mixture.crops.nbytes == 2 * 512 * 96 * 96 * 3 and peak < 5e6, peak


def replace_name(faces, name):
    return FaceSet(faces.frames, faces.crops, faces.landmarks, replace(faces.card, name=name))


@pytest.mark.parametrize("held_out", ["bp4d", "all"])
def test_whoever_is_tested_in_one_world_is_a_stranger_in_all(monkeypatch, held_out):
    "The worlds share their people: subject S0 of one has the face of S0 of the other, be it in the same fold or not."
    from au_study.study import data
    from au_study.study.manifests import load_profile
    parts = [data.data_spec(name, load_profile("smoke")) for name in ("bp4d", "disfa")]
    sets = {"bp4d": blob_faces(subjects=5, frames=4), "disfa": blob_faces(subjects=4, frames=4)}
    sets["disfa"] = FaceSet(sets["disfa"].frames, sets["disfa"].crops, sets["disfa"].landmarks, replace(sets["disfa"].card, folds=(("S1",), ("S2",))))
    monkeypatch.setattr(data, "_world_faces", lambda spec: sets[spec["dataset"]])
    faces = data.open_data(data.mixture_spec(parts, held_out))
    people = [{s.split("/")[1] for s in half.subjects} for k in (0, 1) for half in faces.fold(k)]
    assert people[1::2] == ([{"S0"}, {"S1"}] if held_out == "bp4d" else [{"S0", "S1"}, {"S1", "S2"}])
    assert not people[0] & people[1] and not people[2] & people[3] and "S3" in people[0] & people[2]
    assert part(faces.fold(0)[0], "disfa").subjects == (["disfa/S1", "disfa/S2", "disfa/S3"] if held_out == "bp4d" else ["disfa/S2", "disfa/S3"])
    drawn = set()
    for seed in range(9):  # who chooses the epoch is a stranger too
        rest, held = ({s.split("/")[1] for s in half.subjects} for half in _selection_sets(Trainer(selection="inner", inner_fraction=.4, seed=seed), faces.fold(0)[0], None))
        assert rest | held == people[0] and not rest & held
        drawn |= held
    assert drawn == people[0]
