"""Training across processes and files: kill and resume, repeatability, refusal of damaged and foreign files, every knob."""
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from au_study.training.batches import blob_faces
from au_study.faces.augment import Augment
from au_study.faces.faceset import FaceSet
from au_study.training.loop import mean_f1
from au_study.training import AUEstimator, CheckpointError, ModelFileError, PriorEstimator, Trainer, masked_bce

PROGRAM = '''
import sys, torch
from torch import nn
from au_study.training.batches import blob_faces
from au_study.faces.augment import Augment
from au_study.training import AUEstimator, Trainer, masked_bce

class Net(AUEstimator):
    def build(self, faces):
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(512, 2))
    def loss(self, module, batch): return masked_bce(module(batch.image), batch.labels)
    def scores(self, module, batch): return module(batch.image).sigmoid()

def main(workdir, folder):
    trainer = Trainer(epochs=10, batch_size=8, accumulate=2, lr=0.02, momentum=0.9, schedule="cosine", augment=Augment(rotation=10, blur=0.3, dropout=0.5), clip_norm=1.0,
                      threads=1, device="cpu", progress=False, checkpoint_seconds=0)
    Net(trainer).fit(blob_faces(subjects=6, frames=40), workdir=workdir).save(folder)

if __name__ == "__main__":
    print("ready", flush=True)
    __import__("fit_net").main(*sys.argv[1:])  # under one name, whoever starts it
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "fit_net.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def net(program):
    sys.path.insert(0, str(program.parent))
    try: yield __import__("fit_net")
    finally: sys.path.remove(str(program.parent))


def trainer(**params):
    return Trainer(**{**dict(epochs=3, batch_size=16, lr=0.02, threads=1, device="cpu", progress=False), **params})


def weights(estimator): return torch.cat([v.double().reshape(-1) for v in estimator.module_.state_dict().values()])


def test_killed_at_random_moments_equals_uninterrupted(program, net, tmp_path):
    def start():
        child = subprocess.Popen([sys.executable, str(program), str(work), str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        return child
    rng, kills, work = random.Random(5), 0, tmp_path / "work"
    for _ in range(3):
        child, seen = start(), time.monotonic()
        before = (work / "checkpoint.pt").stat().st_mtime_ns if work.exists() else 0
        while not (work / "checkpoint.pt").exists() or (work / "checkpoint.pt").stat().st_mtime_ns == before:  # it has gone on
            assert child.poll() is None and time.monotonic() - seen < 120
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.4))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait(); child.stdout.close()
    assert kills >= 2, "the fit was over before it could be killed; make it longer"
    net.main(work, tmp_path / "killed")
    net.main(None, tmp_path / "alone")
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("alone", "killed"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    rows = [[(r["epoch"], r["loss"], r["selection_f1"], r["lr"]) for r in json.loads((tmp_path / n / "estimator.json").read_text())["history"]["rows"]] for n in ("alone", "killed")]
    assert rows[0] == rows[1] and len(rows[0]) == 10


def test_two_fits_write_the_same_bytes_and_touch_no_generator(net, tmp_path):
    faces, state = blob_faces(), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    for name in "ab": net.Net(trainer(augment=Augment())).fit(faces).save(tmp_path / name)
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()
    AUEstimator.load(tmp_path / "a").predict_scores(faces)
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]


def test_threads_are_set_during_fit_and_restored(net):
    before, seen = torch.get_num_threads(), []
    class Watching(net.Net):
        def loss(self, module, batch):
            seen.append(torch.get_num_threads())
            return super().loss(module, batch)
    torch.set_num_threads(2)
    try:
        Watching(trainer(threads=1, epochs=1)).fit(blob_faces())
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize("knob", [dict(epochs=2), dict(batch_size=8), dict(optimizer="adam"), dict(optimizer="adamw"), dict(lr=0.03), dict(momentum=0.5), dict(weight_decay=0.1),
    dict(schedule="cosine"), dict(schedule="step", step_epochs=1), dict(schedule="step", step_epochs=1, gamma=0.5), dict(warmup_epochs=1.5), dict(accumulate=2), dict(clip_norm=0.01),
    dict(precision="bf16"), dict(selection="last"), dict(inner_fraction=0.5), dict(seed=1), dict(augment=Augment())], ids=str)
def test_every_knob_changes_the_weights(net, knob):
    fit = lambda **k: weights(net.Net(trainer(**k)).fit(blob_faces()))
    base = dict(knob, gamma=0.1) if "gamma" in knob else {}
    assert not torch.equal(fit(**base), fit(**knob))


@pytest.mark.parametrize("knob", [dict(ram_gb=0.0), dict(checkpoint_seconds=0), dict(progress=True)], ids=str)
def test_knobs_of_the_machine_do_not(net, knob, tmp_path):
    fit = lambda where, **k: weights(net.Net(trainer(**k)).fit(blob_faces(), workdir=tmp_path / where))
    assert torch.equal(fit("a"), fit("b", **knob))


def test_memory_mapped_set_trains_to_the_same_weights(net, tmp_path):
    faces = blob_faces()
    faces.save(tmp_path / "set")
    mapped = FaceSet.load(tmp_path / "set")
    assert torch.equal(weights(net.Net(trainer()).fit(faces)), weights(net.Net(trainer(ram_gb=0.0)).fit(mapped)))


def test_accumulated_gradient_is_that_of_the_large_batch_with_holes():
    faces = blob_faces()
    frames = faces.frames.copy()
    frames.loc[np.random.default_rng(0).random(len(frames)) < 0.5, "AU4"] = np.nan
    faces = FaceSet(frames, np.asarray(faces.crops), np.asarray(faces.landmarks), faces.card)
    class Linear(AUEstimator):
        def build(self, faces): return nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
        def loss(self, module, batch): return masked_bce(module(batch.image), batch.labels)
        def scores(self, module, batch): return module(batch.image).sigmoid()
    fit = lambda **k: weights(Linear(trainer(epochs=1, selection="last", **k)).fit(faces))
    large = fit(batch_size=24)
    torch.testing.assert_close(fit(batch_size=6, accumulate=4), large, atol=1e-6, rtol=1e-5)
    assert (fit(batch_size=6) - large).abs().max() > 1e-4


def test_damaged_checkpoint_is_ignored_with_a_warning_and_a_foreign_one_refused(net, tmp_path):
    faces = blob_faces()
    expected = weights(net.Net(trainer()).fit(faces, workdir=tmp_path))
    file = tmp_path / "checkpoint.pt"
    data = file.read_bytes()
    for broken in (b"", data[:100], data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(broken)
        with pytest.warns(UserWarning, match="is damaged.*starts again"): found = net.Net(trainer()).fit(faces, workdir=tmp_path)
        assert torch.equal(weights(found), expected)
    with pytest.raises(CheckpointError, match="of another run: parameters differ"): net.Net(trainer(lr=0.5)).fit(faces, workdir=tmp_path)
    with pytest.raises(CheckpointError, match="data"): net.Net(trainer()).fit(blob_faces(seed=1), workdir=tmp_path)
    with pytest.raises(CheckpointError, match="parameters"): net.Net(trainer(augment=Augment(0.2))).fit(faces, workdir=tmp_path)


def test_finished_workdir_is_not_trained_again(net, tmp_path):
    faces, calls = blob_faces(), []
    class Counting(net.Net):
        def loss(self, module, batch):
            calls.append(1)
            return super().loss(module, batch)
    first = Counting(trainer()).fit(faces, workdir=tmp_path)
    n = len(calls)
    again = Counting(trainer()).fit(faces, workdir=tmp_path)
    assert len(calls) == n and torch.equal(weights(first), weights(again))
    assert again.history_.record() == first.history_.record()


class Scripted(AUEstimator):
    "Scores that follow a script: which epoch is best is known beforehand."
    script = (0.0, 1.0, 1.0, 0.0)
    def build(self, faces): return nn.ParameterDict({"epoch": nn.Parameter(torch.zeros(()))})
    def loss(self, module, batch): return -module["epoch"]  # SGD with lr 1: one step adds one
    def scores(self, module, batch):
        good = self.script[int(module["epoch"].round()) - 1]
        return batch.labels if good else 1 - batch.labels


@pytest.mark.parametrize("selection, expected", [("inner", 3), ("test", 3), ("last", 4)])
def test_selection_takes_the_best_epoch_and_the_later_of_ties(selection, expected):
    train, test = blob_faces().fold(0)
    t = trainer(epochs=4, batch_size=1000, lr=1.0, momentum=0.0, weight_decay=0.0, selection=selection)
    est = Scripted(t).fit(train, select_on=test if selection == "test" else None)
    assert est.module_["epoch"].item() == expected == est.history_.selected_epoch + 1
    assert est.history_.attrs["selection"] == selection
    on = set(est.history_.attrs["selected_on"])
    assert on == {"last": set(), "test": set(test.subjects)}.get(selection, on) and (selection != "inner" or on < set(train.subjects))


def test_selection_errors(net):
    train, test = blob_faces().fold(0)
    with pytest.raises(ValueError, match="pass it as select_on"): net.Net(trainer(selection="test")).fit(train)
    with pytest.raises(ValueError, match="would not look at it"): net.Net(trainer()).fit(train, select_on=test)
    with pytest.raises(ValueError, match="are in the training set and in select_on"): net.Net(trainer(selection="test")).fit(train, select_on=train)


def test_loss_that_is_not_a_number_names_epoch_and_step(net):
    class Bad(net.Net):
        def loss(self, module, batch):
            self.calls = getattr(self, "calls", 0) + 1
            return super().loss(module, batch) * (float("nan") if self.calls == 5 else 1.0)
    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, step 2.*Lower lr"): Bad(trainer(selection="last")).fit(blob_faces())


def test_frames_without_labels_train_without_nan(net):
    faces = blob_faces()
    frames = faces.frames.copy()
    frames.loc[frames["subject"] != "S0", ["AU4", "AU12"]] = np.nan
    faces = FaceSet(frames, np.asarray(faces.crops), np.asarray(faces.landmarks), faces.card)
    est = net.Net(trainer(batch_size=4, accumulate=2, selection="last")).fit(faces)
    assert torch.isfinite(weights(est)).all() and np.isfinite(est.history_["loss"]).all()


def test_scores_that_are_not_finite_are_refused(net):
    class Bad(net.Net):
        def scores(self, module, batch): return super().scores(module, batch).where(batch.rows[:, None] != 7, float("nan"))
    with pytest.raises(FloatingPointError, match="The score of row 7, AU column 0 is nan"): Bad(trainer(selection="last")).fit(blob_faces()).predict_scores(blob_faces())


def test_log_gets_one_line_an_epoch_on_stderr(net, capfd):
    net.Net(trainer(progress=True, precision="bf16")).fit(blob_faces())
    out, err = capfd.readouterr()
    lines = err.strip().splitlines()
    assert out == "" and len(lines) == 3
    assert all(l.startswith(f"epoch {i + 1}/3  loss ") and l.endswith(" left") and " F1 " in l and " images/s " in l for i, l in enumerate(lines))


def test_history_columns(net):
    history = net.Net(trainer()).fit(blob_faces()).history_
    assert list(history.columns) == ["epoch", "loss", "selection_f1", "lr", "seconds", "images_per_s", "peak_memory_mb"]
    assert (history[["seconds", "images_per_s", "peak_memory_mb"]] > 0).all().all()


@pytest.mark.parametrize("name, change, message", [
    ("weights.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "weights.safetensors was changed"),
    ("weights.safetensors", lambda b: b[:50], "weights.safetensors was changed"),
    ("estimator.json", lambda b: b.replace(b'"flip": 0.5', b'"flip": 0.2'), "estimator.json was changed"),
    ("estimator.json", lambda b: b[:-10], "is not JSON"),
    ("estimator.json", lambda b: b"{}", "has format None")])
def test_tampered_model_is_refused(net, tmp_path, name, change, message):
    est = net.Net(trainer(epochs=1, augment=Augment())).fit(blob_faces())
    file = est.save(tmp_path / "model") / name
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    with pytest.raises(ModelFileError, match=message): AUEstimator.load(tmp_path / "model")


def test_incomplete_model_and_unknown_class_are_refused(net, tmp_path, program):
    with pytest.raises(ModelFileError, match="estimator.json and weights.safetensors missing"): AUEstimator.load(tmp_path)
    net.Net(trainer(epochs=1)).fit(blob_faces()).save(tmp_path / "model")
    code = f"from au_study.training import AUEstimator; AUEstimator.load({str(tmp_path / 'model')!r})"  # a process that has not imported fit_net
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(program.parent)})
    assert done.returncode and "no such class is known" in done.stderr


def test_saved_model_is_whole_or_absent(tmp_path, monkeypatch):
    prior = PriorEstimator().fit(blob_faces())
    prior.save(tmp_path / "model")
    monkeypatch.setattr("au_study.training.estimator.save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): prior.save(tmp_path / "model", overwrite=True)
    with pytest.raises(OSError, match="disk full"): prior.save(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert AUEstimator.load(tmp_path / "model").predict_scores(blob_faces()).shape == (48, 5)


def test_nested_parameters_start_from_the_defaults():
    est = PriorEstimator().set_params(trainer__augment__flip=0.25, trainer__epochs=3)
    assert (est.trainer.augment.flip, est.trainer.epochs, est.trainer.augment.rotation) == (0.25, 3, 0.0)
    assert PriorEstimator().trainer is None and Trainer().augment is None
    with pytest.raises(ValueError, match="Invalid parameter 'flips'"): PriorEstimator().set_params(trainer__augment__flips=0.25)


def test_two_processes_train_as_one(tmp_path):
    program = tmp_path / "two.py"
    program.write_text("""
import sys
from torch import nn
from au_study.training.batches import blob_faces
from au_study.training import AUEstimator, Trainer, masked_bce
class Linear(AUEstimator):
    def build(self, faces): return nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    def loss(self, module, batch): return masked_bce(module(batch.image), batch.labels)
    def scores(self, module, batch): return module(batch.image).sigmoid()
def main(n, workdir): Linear(Trainer(epochs=2, batch_size=7, accumulate=2, device=n, threads=1, progress=False)).fit(blob_faces(), workdir=workdir)
if __name__ == "__main__": main(2, sys.argv[1])
""")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), str(tmp_path / "2")], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    scope = {"__name__": "two"}
    exec(program.read_text().replace("device=n", "device='cpu'"), scope)
    scope["main"](1, tmp_path / "1")
    one, two = (torch.load(io.BytesIO((tmp_path / n / "checkpoint.pt").read_bytes().partition(b"\n")[2]), weights_only=True) for n in "12")
    for k, v in one["module"].items(): torch.testing.assert_close(two["module"][k], v, atol=1e-6, rtol=1e-5)
    for a, b in zip(one["rows"], two["rows"]): assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["selection_f1"] == pytest.approx(b["selection_f1"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_fits_resumes_and_loads_on_the_cpu(net, tmp_path, precision):
    faces = blob_faces()
    before = torch.cuda.get_rng_state()
    est = net.Net(trainer(device="cuda", precision=precision, augment=Augment(), clip_norm=1.0, epochs=6)).fit(faces, workdir=tmp_path / "work")
    again = net.Net(trainer(device="cuda", precision=precision, augment=Augment(), clip_norm=1.0, epochs=6)).fit(faces, workdir=tmp_path / "work")
    assert torch.equal(weights(est), weights(again)) and torch.equal(torch.cuda.get_rng_state(), before)
    assert all(not v.is_cuda for v in est.module_.state_dict().values())
    loaded = AUEstimator.load(est.save(tmp_path / "model")).set_params(trainer__device="cpu", trainer__precision="fp32")
    np.testing.assert_allclose(loaded.predict_scores(faces)["AU4"], est.predict_scores(faces)["AU4"], atol=1e-2 if precision != "fp32" else 1e-4)


def test_clip_is_augmented_alike_and_offsets_reach_the_network(net):
    class Clips(net.Net):
        offsets = (-1, 0, 1)
        def build(self, faces): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 768, 2))
    est = Clips(trainer(augment=Augment())).fit(blob_faces())
    assert est.predict_scores(blob_faces()).shape == (48, 5)


def test_prior_refuses_an_au_without_a_coded_frame():
    faces = blob_faces()
    empty = FaceSet(faces.frames.assign(AU4=np.nan), np.asarray(faces.crops), np.asarray(faces.landmarks), faces.card)
    with pytest.raises(ValueError, match="No training frame is coded for AU4"): PriorEstimator().fit(empty)


def test_columns_of_another_number_of_aus_are_named():
    with pytest.raises(ValueError, match=r"scores must give \[B, K\], K = 12 AUs; they have 5 columns"): mean_f1(np.ones((10, 12)), np.ones((10, 5)))
