"""Fault drills: what a batch is put through, it ends in the tables of a batch that was left alone, or refuses in words.

Two kills by default; `AU_STUDY_DRILLS=20 pytest tests/test_drills.py -k killed` for an evening of them.
(Checkpoints and saved models have their own drills in test_training.py, a single training in test_study.py.)
"""
import base64
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tiny_batch import STUDY, begin, below, checkout, furnish, reproduce, server, tables, wait_for  # noqa: F401
from tiny_estimator import Tiny

from au_study.faces.faceset import FaceSet
from au_study.files import Damaged, damaged, publish, seal, sound, whole_file, whole_folder, write_text
from au_study.study.batch import drop_damaged, drop_old_tables
from au_study.study.data import DataChanged, check_fingerprint
from au_study.study.manifests import ManifestError
from au_study.study.plan import make_plan, read_plan
from au_study.study.runs import RunStore
from au_study.training import AUEstimator, ModelFileError
from au_study.training.batches import blob_faces
from au_study.training.loop import write_checkpoint

KILLS = int(os.environ.get("AU_STUDY_DRILLS", 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkout):  # noqa: F811
    "A checkout, data, a study of two runs, and the results of a batch that was left alone (but for a second one that was started in the same moment)."
    folder = furnish(tmp_path_factory.mktemp("drills of a batch"), checkout)      # a space in every path
    started = time.monotonic()
    both = [begin(folder, "whole") for _ in range(2)]
    said = [p.communicate(timeout=900)[0] for p in both]
    assert sorted(p.returncode for p in both) == [0, 2], said
    assert "being worked on by process" in said[[p.returncode for p in both].index(2)]
    (folder / "seconds").write_text(str(time.monotonic() - started))
    assert set(tables(folder, "whole")) == {"tiny.csv", "tiny.md", "tiny.tex"}
    return folder


def equal(place, results):
    "Whether a results folder holds the undisturbed tables and scores."
    assert tables(place, results) == tables(place, "whole")
    for run in (place / "whole/runs").iterdir(): assert (place / results / "runs" / run.name / "scores.parquet").read_bytes() == (run / "scores.parquet").read_bytes()


def copied(place, name):
    "A copy of the undisturbed results."
    shutil.copytree(place / "whole", place / name, ignore=shutil.ignore_patterns(".snakemake"))
    return place / name


def flip(path, at=0.5):
    "Turn one bit of a file."
    data = bytearray(Path(path).read_bytes())
    data[int(len(data) * at)] ^= 16
    Path(path).write_bytes(data)


# --- stopped and killed ----------------------------------------------------------------------------------------------------------

def test_stopped_then_killed_it_goes_on(place, server):  # noqa: F811
    "SIGTERM, then SIGKILL, each within a training; Snakemake's notes torn; then the same call, twice."
    results = place / "broken"
    def training(): return any((results / "work/runs").glob("*/train/*"))
    first = begin(place, "broken")
    wait_for((results / "work").exists, 240, "a batch to begin")
    second = reproduce(place, "broken", server=server)
    assert second.returncode == 2 and "being worked on by process" in second.stdout
    wait_for(training, 240, "a training to begin")
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "goes on from there" in said, said
    wait_for(lambda: not below(results), 15, "all processes to end after SIGTERM")

    killed = begin(place, "broken")
    before = {p: p.stat().st_mtime_ns for p in (results / "work/runs").glob("*/train/*")}
    wait_for(lambda: any(p.stat().st_mtime_ns != before.get(p) for p in (results / "work/runs").glob("*/train/*") if p.exists()) or any((results / "runs").glob("*")), 240, "a resumed training")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_for(lambda: not below(results), 15, "all processes to end after the driver was killed")
    assert not tables(place, "broken")
    for mark in (results / "work/done").glob("*/*"):   # as when Snakemake is killed between the end of a job and its own note of it
        name = base64.b64encode(str(mark.relative_to(results)).encode()).decode()
        (results / ".snakemake/incomplete" / name).write_text('{"external_jobid": null}')

    resumed = reproduce(place, "broken", server=server)
    assert resumed.returncode == 0, resumed.stdout

    stamps = {p: p.stat().st_mtime_ns for p in (results / "runs").rglob("*")}
    again = reproduce(place, "broken", server=server)
    assert again.returncode == 0 and "Nothing to do" in again.stdout, f"first call:\n{resumed.stdout}\nsecond call:\n{again.stdout}"
    assert stamps == {p: p.stat().st_mtime_ns for p in (results / "runs").rglob("*")}

    page = (results / "index.html").read_text()
    assert "published only" in page and "face world" in page and 'http-equiv="refresh"' not in page and "http://" not in page and "https://" not in page
    child = next((results / "runs").glob("*f0*/weights/parent.json"))
    assert (results / "runs" / json.loads(child.read_text())["run"] / "weights/weights.safetensors").exists()

    equal(place, "broken")


def test_killed_at_random_moments(place, server):  # noqa: F811
    "kill -9 of the batch, or of any process below it; afterwards nothing runs on, and the same call ends in the same bytes."
    rng, results, seconds = random.Random(KILLS), place / "killed", float((place / "seconds").read_text())
    for _ in range(KILLS):
        batch = begin(place, "killed")
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        family = [batch.pid, *(p.pid for p in psutil.Process(batch.pid).children(recursive=True))] if batch.poll() is None else []
        victim = batch.pid if rng.random() < 0.5 else rng.choice(family or [0])
        if family:
            try: os.kill(victim, signal.SIGKILL)
            except ProcessLookupError: pass
        batch.communicate(timeout=900)       # a batch that has lost a notebook goes on to its end
        wait_for(lambda: not below(results), 30, "all processes to end")
    done = reproduce(place, "killed", server=server)
    assert done.returncode == 0, done.stdout
    equal(place, "killed")


def test_signals_end_a_call_but_for_those_it_was_told_to_ignore():
    from au_study.study import batch
    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)      # as nohup leaves it
        with pytest.raises(batch.Stopped, match="SIGTERM"):
            with batch._stoppable():
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        assert signal.getsignal(signal.SIGTERM) == before[1] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGTERM), before): signal.signal(number, handler)


# --- a full disk -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def small_disk(tmp_path):
    "A function that makes a folder with so many KB of room: a file system of its own where one may be mounted."
    mounted = []
    def make(kb):
        folder = tmp_path / f"disk{kb}"
        folder.mkdir()
        if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", str(folder)], capture_output=True).returncode: pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder
    yield make
    for folder in mounted: subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_full_disk_stops_the_batch_and_room_lets_it_go_on(place, server, small_disk):  # noqa: F811
    disk = small_disk(64_000)
    (place / "full").symlink_to(disk)
    batch = begin(place, "full")
    wait_for(lambda: any((disk / "work/runs").glob("*/train/checkpoint.pt")) or batch.poll() is not None, 600, "a training")
    with open(disk / "ballast", "wb", buffering=0) as f:
        try:
            while True: f.write(bytes(4096))
        except OSError as e: assert e.errno == errno.ENOSPC
    said, _ = batch.communicate(timeout=900)
    assert batch.returncode in (1, 2) and "No space left on device" in said, said    # a run found no room, or the batch itself
    assert not tables(place, "full")
    (disk / "ballast").unlink()
    done = reproduce(place, "full", server=server)
    assert done.returncode == 0, done.stdout
    equal(place, "full")


WRITES = {
    "checkpoint": lambda folder: write_checkpoint(folder / "x", {"about": {}, "w": torch.zeros(3000)}),
    "text": lambda folder: write_text(folder / "x", "a" * 12_000),
    "faces": lambda folder: blob_faces(2, 6).save(folder / "x", overwrite=True),
    "model": lambda folder: _fitted().save(folder / "x", overwrite=True),
    "result": lambda folder: _publish(folder),
}


def _fitted():
    if not hasattr(_fitted, "model"): _fitted.model = Tiny().set_params(trainer__epochs=1, trainer__progress=False, trainer__selection="last", trainer__device="cpu").fit(blob_faces(2, 6))
    return _fitted.model


def _publish(folder):
    staged = folder / "out"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(folder / "x", ignore_errors=True)
    staged.mkdir()
    for name in "ab": (staged / name).write_bytes(bytes(6000))
    seal(staged)
    publish(staged, folder / "x", ("a", "b"))


def content(path): return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()} if path.is_dir() else path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("what", WRITES)
def test_whatever_room_is_left_a_file_is_whole_or_absent(what, small_disk):
    "The disk fills up at every possible place of the write, 4 KB apart."
    disk, kept, failed = small_disk(256), None, 0
    for room in range(0, 200, 4):
        for old in disk.iterdir(): shutil.rmtree(old) if old.is_dir() else old.unlink()
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        try: (disk / "ballast").write_bytes(bytes(max(0, free - room * 1024)))
        except OSError: continue
        try: WRITES[what](disk)
        except OSError as e:
            assert e.errno in (errno.ENOSPC, None) or "No space left" in str(e), e
            assert not (disk / "x").exists(), f"half a {what} with {room} KB of room"
            failed += 1
        except Exception as e:       # safetensors and torch have errors of their own
            assert "No space left" in str(e) or "write" in str(e), e
            assert not (disk / "x").exists()
            failed += 1
        else:
            kept = kept or content(disk / "x")
            if what not in ("checkpoint", "model"): assert content(disk / "x") == kept
            if failed and room > 100: break
    assert failed and kept


def test_a_torn_line_of_timings_hurts_nobody(tmp_path):
    from au_study.study.costs import read_timings
    (tmp_path / "timings.jsonl").write_text('{"kind": "data", "id": "a-1", "sec{"kind": "data", "id": "a-1", "seconds": 2.0}\n{"kind": "data", "id": "a-1", "seconds": 3.0}\n')
    assert [t["seconds"] for t in read_timings(tmp_path)] == [3.0]


# --- a part that fails -----------------------------------------------------------------------------------------------------------

def test_a_failing_run_does_not_stop_the_others(place, server):  # noqa: F811
    (place / "failing.yaml").write_text(STUDY.replace("shift: 0.5", "fail: true"))
    done = reproduce(place, "failing", "failing.yaml", server=server)
    assert done.returncode == 1
    assert "RuntimeError: this estimator fails on purpose" in done.stdout and "run.ipynb" in done.stdout
    plan = json.loads(next((place / "failing/plans").glob("*.json")).read_text())
    states = [RunStore(place / "failing").state(r) for r in plan["runs"]]
    assert sorted(states) == ["done", "failed"] and not (place / "failing/tables").exists()
    assert "fails on purpose" in (place / "failing/index.html").read_text()


def test_data_that_cannot_be_made_do_not_stop_the_rest(place, server):  # noqa: F811
    blob_faces(6, 20, seed=2).save(place / "data/torn")
    flip(place / "data/torn/crops.npy", 0.999)       # of the right size: only who reads it all can tell
    (place / "torn.yaml").write_text(STUDY.replace("dataset: blobs", "dataset: torn"))
    done = reproduce(place, "torn", "tiny.yaml", "torn.yaml", server=server)
    assert done.returncode == 1 and "torn" in done.stdout, done.stdout
    assert tables(place, "torn") == tables(place, "whole") and not (place / "torn/tables/small-data/torn.csv").exists()


def test_a_report_that_fails_stops_no_training(monkeypatch, capsys):
    from au_study.study import batch
    def broken(*_, **__): raise TypeError("a study that was saved half-edited")
    monkeypatch.setattr(batch, "write_report", broken)
    batch._pages(None)
    assert "The report could not be written: TypeError: a study that was saved half-edited" in capsys.readouterr().out
    monkeypatch.setattr(batch, "write_report", lambda *_, **__: batch._raise_stopped(signal.SIGTERM, None))
    with pytest.raises(batch.Stopped, match="SIGTERM"): batch._pages(None)      # a batch that is stopped just then doesn't go on


def test_a_call_with_nothing_left_to_make_says_so(place, capsys):
    from au_study.study.batch import reproduce as make
    (place / "turned.yaml").write_text(STUDY.replace("dataset: blobs", "dataset: blobs\ndata: {knobs: {duration_factor: 2}}"))
    with pytest.raises(ManifestError, match="nothing is left to make of .*turned.yaml; the reason is above"):
        make([place / "turned.yaml"], place / "small.yaml", str(place / "data"), place / "nothing", 2)
    assert "turned is left out: duration_factor" in capsys.readouterr().out and not (place / "nothing/plans").exists()


# --- flipped bits ----------------------------------------------------------------------------------------------------------------

def test_flipped_bits_are_found_and_mended_whatever_the_clock_says(place, server):  # noqa: F811
    "A bit in the scores, one in a record's fingerprint: the next call makes these again, and only these, though all files are from next year (a clock that was set back)."
    results = copied(place, "flipped")
    child = next(p.parents[1] for p in (results / "runs").glob("*/weights/parent.json"))
    parent = results / "runs" / json.loads((child / "weights/parent.json").read_text())["run"]
    flip(next((results / "data").glob("*/data.json")), 0.3)
    flip(child / "scores.parquet")
    next_year = time.time() + 365 * 86400
    for root in (results, place / "data"):
        for path in (root, *root.rglob("*")): os.utime(path, (next_year, next_year))
    done = reproduce(place, "flipped", server=server)
    assert done.returncode == 0 and "2 results were damaged on disk and are made again" in done.stdout, done.stdout
    equal(place, "flipped")
    assert all(p.stat().st_mtime > next_year - 86400 for p in parent.rglob("*")), "a good run is not thrown away for a bad record"

    store = RunStore(results)       # within one call there is no second chance, but a clear word
    flip(child / "scores.parquet")
    with pytest.raises(Damaged, match="scores.parquet isn't what was written.*makes .* anew"): store.scores(child.name)
    flip(parent / "metrics.json", 0.1)
    with pytest.raises(Damaged, match="metrics.json isn't what was written"): store.read(parent.name)
    flip(parent / "weights/weights.safetensors", 0.9)
    assert damaged(parent) == ["metrics.json", "weights/weights.safetensors"]
    with pytest.raises(ModelFileError, match="weights.safetensors was changed"): AUEstimator.load(parent / "weights")


def test_what_stands_on_a_removed_result_goes_with_it(place):
    "A run takes those that use its weights along, and tables; a table of an earlier version of its runs is made again; weights are looked at where an analysis will read them."
    store = RunStore(copied(place, "stands"))
    plan, table = read_plan(next((store.root / "plans").iterdir())), next((store.root / "studies").iterdir())
    child, parent = next((r, e["parent"]) for r, e in plan.runs.items() if e["parent"])
    assert drop_old_tables(plan, store) == []
    seal_of_parent = store.root / "runs" / parent / "sums.json"
    seal_of_parent.write_text(seal_of_parent.read_text() + " ")     # made anew, by a batch of another table
    assert drop_old_tables(plan, store) == ["tiny"] and not table.exists()

    flip(store.root / "runs" / parent / "weights/weights.safetensors", 0.9)
    assert drop_damaged(plan, store) == []
    plan.studies[table.name]["kind"] = "analysis"
    assert [d.partition(" ")[0] for d in drop_damaged(plan, store)] == [parent]
    assert not store.done(parent) and not store.done(child)


@pytest.mark.parametrize("at", [0.02, 0.5, 0.999])
def test_a_flipped_pixel_is_refused_before_training(tmp_path, at):
    faces = blob_faces(2, 6)
    record = {"id": "blobs-1", "fingerprint": faces.fingerprint}
    faces.save(tmp_path / "set")
    check_fingerprint(FaceSet.load(tmp_path / "set"), record)
    flip(tmp_path / "set/crops.npy", max(at, 130 / (tmp_path / "set/crops.npy").stat().st_size))
    with pytest.raises(DataChanged, match="crops.npy aren't those that were recorded.*Delete its folder"): check_fingerprint(FaceSet.load(tmp_path / "set"), record)


@pytest.mark.parametrize("part", ["frames.parquet", "landmarks.npy", "card.json", "manifest.json"])
def test_a_flipped_bit_beside_the_pixels_is_refused_or_changes_nothing(tmp_path, part):
    from au_study.faces.faceset import FaceSetError
    faces = blob_faces(2, 6)
    for at in np.linspace(0.01, 0.99, 12):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        faces.save(tmp_path / "set")
        flip(tmp_path / "set" / part, at)
        try:
            found = FaceSet.load(tmp_path / "set")
            check_fingerprint(found, {"id": "blobs-1", "fingerprint": faces.fingerprint})
        except (FaceSetError, DataChanged): continue
        assert part == "manifest.json", f"byte {at:.2f} of {part}"       # a number there that nothing depends on


# --- what looks like the same and isn't ------------------------------------------------------------------------------------------

def test_a_changed_parameter_has_its_own_runs_and_the_old_ones_come_back(place, monkeypatch):
    monkeypatch.setenv("AU_STUDY_ROOT", str((place / "code").resolve()))
    def planned(text):
        (place / "tiny.yaml").write_text(text)
        try: return make_plan([place / "tiny.yaml"], place / "small.yaml", str(place / "data"), place / "whole")
        finally: (place / "tiny.yaml").write_text(STUDY)
    old, store = planned(STUDY), RunStore(place / "whole")
    assert all(store.done(r) for r in old.runs)
    shift = planned(STUDY.replace("shift: 0.5", "shift: 0.25"))
    assert len(set(old.runs) & set(shift.runs)) == 1 and sum(store.done(r) for r in shift.runs) == 1 and not set(old.studies) & set(shift.studies)
    lr = planned(STUDY.replace("{seconds: 0.05", "{seconds: 0.05, trainer__lr: 0.5"))
    assert not set(old.runs) & set(lr.runs) and not any(store.done(r) for r in lr.runs)
    assert planned(STUDY) == old


def test_a_run_that_raises_leaves_a_word_and_no_result(tmp_path):
    "In one process: an error in the block leaves what was there before."
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError):
        with whole_file(tmp_path / "a") as aside:
            aside.write_text("new")
            1 / 0
    with pytest.raises(ZeroDivisionError):
        with whole_folder(tmp_path / "b") as aside:
            (aside / "c").write_text("new")
            1 / 0
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_seal_that_was_damaged_itself_is_no_proof(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/a").write_text("1")
    seal(tmp_path / "r")
    flip(tmp_path / "r/sums.json")
    with pytest.raises(Damaged): sound(tmp_path / "r/a")
