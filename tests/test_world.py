"""The face world across notebooks: same seed same bytes, resume after a kill, statistics, knobs that work, errors that help."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from au_study.world import Coder, FaceWorld, PresetError, code_labels, load_preset, preset_report, simulate_labels
from au_study.world import dynamics
from au_study.world.dynamics import WORLD_AUS, criteria
from au_study.world.world import cache_root, world_sizes

TINY = dict(subjects=3, videos=2, frames=5, stride=60, crop=48)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return FaceWorld("bp4d", seed=3).faceset(TINY, cache_dir=tmp_path_factory.mktemp("tiny"), progress=False)


def test_same_seed_same_bytes_in_another_process(tiny, tmp_path):
    code = f"from au_study.world import FaceWorld; print(FaceWorld('bp4d', seed=3).faceset({TINY!r}, cache_dir={str(tmp_path)!r}, batch=4, progress=False).fingerprint)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "AU_STUDY_CACHE": str(tmp_path)})
    assert out.stdout.split()[-1] == tiny.fingerprint


def test_neighbours_change_no_byte(tmp_path):
    "Windows are as large as the neediest face of a batch needs; heads in the wild are turned and tilted most."
    few, many = (FaceWorld("affwild2", seed=3).faceset(dict(TINY, subjects=6, videos=1), cache_dir=tmp_path / str(n), batch=n, progress=False) for n in (3, 64))
    assert few.fingerprint == many.fingerprint and few.crops.std() > 0


def test_nothing_trained_on_another_world_is_taken(tmp_path, monkeypatch):
    from au_study.faces.landmarks import WorldDetector
    from au_study.static_dynamic import parsing
    made, places = [], set()
    monkeypatch.setattr(parsing, "train_parser", lambda *said: made.append(said) or parsing.FaceParser())
    for world in ("one", "two", "one"):
        monkeypatch.setattr("au_study.world.world.source_hash", lambda world=world: world)
        parsing.world_parser(cache_dir=tmp_path)
        places.add(WorldDetector(tmp_path).path)
    assert len(made) == len(places) == 2
    monkeypatch.delenv("AU_STUDY_CACHE", raising=False); monkeypatch.chdir(tmp_path)
    assert WorldDetector().path.parents[1] == cache_root()   # where everything else is kept, wherever one stands


def test_another_seed_is_another_world(tiny, tmp_path):
    other = FaceWorld("bp4d", seed=4).faceset(TINY, cache_dir=tmp_path, progress=False)
    assert not np.array_equal(other.crops, tiny.crops) and not np.array_equal(other.labels(), tiny.labels())


def test_killed_rendering_resumes_to_the_same_faceset(tmp_path):
    sizes = dict(subjects=6, videos=1, frames=50, stride=7, crop=48)
    code = f"from au_study.world import FaceWorld; FaceWorld('bp4d').faceset({sizes!r}, cache_dir={str(tmp_path / 'a')!r}, batch=16, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 240
    try:
        while not (begun := list(tmp_path.glob("a/world/.*.part/journal.json"))) and process.poll() is None and time.monotonic() < until: time.sleep(0.02)
    finally: process.send_signal(signal.SIGKILL), process.wait()
    assert begun, "rendering ended before it could be killed: enlarge `sizes`"
    assert not list(tmp_path.glob("a/world/bp4d-*"))  # nothing torn under the final name
    resumed = FaceWorld("bp4d").faceset(sizes, cache_dir=tmp_path / "a", progress=False)
    assert not list(tmp_path.glob("a/world/.*.part"))
    whole = FaceWorld("bp4d").faceset(sizes, cache_dir=tmp_path / "b", progress=False)
    assert resumed.fingerprint == whole.fingerprint


def test_faceset_fits_the_contracts(tiny):
    train, test = tiny.fold(0)
    assert set(train.subjects).isdisjoint(test.subjects) and len(tiny.card.folds) == 3
    assert tiny.card.synthetic and tiny.aus == (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
    assert tiny.crops.shape == (30, 48, 48, 3) and np.isfinite(tiny.landmarks).all()
    assert (tiny.frames.groupby(["subject", "video"]).frame.diff().dropna() == 60).all()


@pytest.mark.parametrize("name", ["bp4d", "disfa"])
def test_statistics_of_a_medium_cohort(name):
    preset = load_preset(name, subjects=24, videos=min(4, load_preset(name).videos))
    report = preset_report(preset, code_labels(simulate_labels(preset, seed=5), preset, seed=5))
    judged = report[report.tolerance.notna()]
    wrong = judged[~judged.ok.astype(bool)]
    assert len(wrong) <= 0.05 * len(judged), wrong
    assert (judged.error.abs() <= 2.5 * judged.tolerance).all(), wrong


def test_report_notices_wrong_statistics():
    labels = code_labels(simulate_labels("bp4d", subjects=12, videos=2), "bp4d", Coder())
    labels["AU12"] = np.roll(labels["AU12"].to_numpy(), 5000)
    labels["AU4"] = 0.0
    report = preset_report("bp4d", labels).set_index(["statistic", "of"])
    assert not report.ok[("correlation", "AU6-AU12")] and not report.ok[("base rate", "AU4")]


def test_world_is_part_of_the_full_cohort():
    whole, part = simulate_labels("disfa", subjects=4), simulate_labels("disfa", subjects=2, frames=30, stride=100)
    some = whole[whole.subject.isin(["W001", "W002"]) & (whole.frame % 100 == 0) & (whole.frame < 3000)].reset_index(drop=True)
    assert some.equals(part)


@pytest.mark.parametrize("changes", [dict(scene={"pose": {"yaw": 20, "pitch": 5, "roll": 3}}), dict(scene={"drift": {"yaw": 9, "pitch": 3, "roll": 2, "seconds": 2.0}}),
                                     dict(scene={"light": 0.0}), dict(scene={"noise": 3.0}), dict(scene={"blink": {"per_minute": 200, "seconds": 0.4}}),
                                     dict(scene={"gaze": {"degrees": 25, "seconds": 1.5}}), dict(scene={"occlusion": {"share": 0.7, "seconds": 2.0}}),
                                     dict(face={"wrinkles": 0.2}), dict(face={"neutral_bias": 3.0}), dict(face={"gain_spread": 3.0}),
                                     dict(dynamics={"rise_seconds": 2.0}), dict(dynamics={"fall_seconds": 3.0}), dict(dynamics={"video_share": 0.6}),
                                     dict(dynamics={"rounds": 0}), dict(correlation_strength=0.2), dict(correlation_shuffle=1), dict(duration_factor=2.0)], ids=str)
def test_every_knob_changes_the_pictures(changes):
    worlds = [FaceWorld(load_preset("bp4d", subjects=20, videos=2, **c)) for c in ({}, changes)]
    from au_study.world.world import scenes_of

    def pictures(world):
        truth = world.truth(dict(subjects=2, videos=1, frames=3, stride=90))
        rows = truth.filter(like="AU").to_numpy(np.float32)
        return world.render(world.people([0, 0, 0, 1, 1, 1]), rows, scenes_of(world.preset, 0, truth), size=64).images.numpy()

    assert not np.array_equal(*map(pictures, worlds))


@pytest.mark.parametrize("changes", [dict(spread=0.6), dict(spread=0.6, shared=1.0), dict(unlabelled=0.3), dict(unlabelled=0.3, stretch=5),
                                     dict(relative=0.5), dict(relative=1.0)], ids=str)
def test_every_coder_knob_changes_the_labels(changes):
    truth = simulate_labels("bp4d", subjects=3, videos=2)
    assert not code_labels(truth, "bp4d", Coder(**changes)).equals(code_labels(truth, "bp4d", Coder()))


@pytest.mark.parametrize("name", ["bp4d", "disfa", "affwild2"])
def test_levels_of_the_presets_are_the_same_for_all(name):
    preset, truth = load_preset(name), simulate_labels(name, subjects=3, videos=1, frames=40, stride=10)
    assert Coder(**preset.coder).relative == 0
    names = [f"AU{a}" for a in preset.aus]
    coded = code_labels(truth, preset, seed=2)[names].to_numpy()
    strict = criteria(Coder(**preset.coder), 3, 2)[truth.subject.str[1:].astype(int) - 1][:, [WORLD_AUS.index(a) for a in preset.aus]]
    levels = np.clip(np.floor(truth[names].to_numpy() / strict + 0.5), 0, 5)
    wanted = levels if preset.kind == "intensity" else (levels >= 1).astype(float)
    assert np.array_equal(coded[np.isfinite(coded)], wanted[np.isfinite(coded)])


@pytest.mark.parametrize("kind, steps", [("intensity", 5), ("occurrence", 1)])
@pytest.mark.parametrize("relative", [0.4, 1.0])
def test_relative_levels_follow_the_range_of_each_video(kind, steps, relative):
    truth = simulate_labels("bp4d", subjects=3, videos=2, frames=50, stride=8)
    coded = code_labels(truth, "bp4d", Coder(relative=relative), kind=kind)
    for _, rows in truth.groupby(["subject", "video"]).indices.items():
        for au in ("AU1", "AU6", "AU12", "AU17"):
            x = truth[au].to_numpy(float)[rows]
            usual, most = np.median(x), x.max()
            borders = [(1 - relative) * (j - 0.5) + relative * (usual + (j - 0.5) / steps * max(most - usual, 1)) for j in range(1, 6)]
            clear = np.abs(x[:, None] - borders).min(1) > 1e-4           # a border itself may round either way
            level = (x[:, None] >= borders).sum(1)
            wanted = level if kind == "intensity" else level > 0
            assert np.array_equal(coded[au].to_numpy()[rows][clear], wanted[clear].astype(float))


def test_errors_say_what_to_do():
    with pytest.raises(PresetError, match="no world preset 'bp5d': expected one of"): FaceWorld("bp5d")
    with pytest.raises(PresetError, match="no profile 'huge': expected one of"): FaceWorld("bp4d").faceset("huge")
    with pytest.raises(PresetError, match=r"unknown keys \['people'\]"): world_sizes(dict(people=2), load_preset("bp4d"))
    with pytest.raises(PresetError, match="unknown keys"): load_preset("bp4d", colour="red")
    with pytest.raises(PresetError, match="does not fit into videos"): load_preset("bp4d", frames=20)
    with pytest.raises(PresetError, match="no AU"): FaceWorld("bp4d").render(1, {11: 1.0})


def test_presets_name_the_source_of_every_figure():
    for path in sorted((Path(__file__).parents[1] / "data_manifests/worlds").glob("*.yaml")):
        preset = load_preset(path.stem)
        said = set(preset.sources)
        assert {"base_rate", "mean_duration", "correlation", "active_intensity", "scene", "coder", "uncoded"} <= said, path.name


def test_a_kept_matching_is_the_matching(tmp_path, monkeypatch):
    "A process that finds the outcome in the cache draws the same people; half a file, another's file and a flipped bit count as none; no cache, no file."
    monkeypatch.setenv("AU_STUDY_CACHE", str(tmp_path))
    preset = replace(load_preset("disfa"), subjects=8, videos=1, frames=400)
    def drawn(p=preset):
        made = dynamics.Cohort(p, 3)
        return made.Z.tobytes() + made.active.tobytes() + made.u.tobytes() + made.R.tobytes() + made.scale.tobytes()
    first, matched = drawn(), []
    match = dynamics.Cohort._match
    monkeypatch.setattr(dynamics.Cohort, "_match", lambda *a: (matched.append(1), match(*a)))
    kept, = (tmp_path / "world/cohorts").iterdir()
    whole = kept.read_bytes()
    assert drawn() == first and not matched
    for torn in (b"", whole[:900], bytes([*whole[:700], whole[700] ^ 4, *whole[701:]])):
        kept.write_bytes(torn)
        assert drawn() == first and kept.read_bytes() == whole
    assert len(matched) == 3
    drawn(replace(preset, duration_factor=1.5))
    assert len(matched) == 4 and len(list((tmp_path / "world/cohorts").iterdir())) == 2
    monkeypatch.setenv("AU_STUDY_CACHE", str(kept / "no folder"))
    assert drawn() == first and len(matched) == 5
