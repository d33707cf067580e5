"Several processes train as one: the same curve, the same weights, the same checkpoint, and an end when something ends."
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from au_study.faces.faceset import FaceSet
from au_study.training import CheckpointError, Trainer, masked_bce
from au_study.training.batches import blob_faces
from au_study.training.ddp import in_processes
from au_study.training.loop import resolve_device

# Written to a file, as a user's module would be: the processes import it, or get it by value where they can't.
NET = '''
import torch
from torch import nn
from au_study.training import AUEstimator, masked_bce

class Net(AUEstimator):
    "Batch normalisation, a part that most batches leave out, and a loss that calls more than the network's forward."
    stop_at = None
    def build(self, faces):
        return nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()), "head": nn.Linear(256, 2), "rare": nn.Linear(256, 2)})
    def logits(self, module, batch):
        x = module["body"](batch.image)
        return module["head"](x) + (module["rare"](x) if bool(torch.rand(()) < 0.3) else 0.0)
    def loss(self, module, batch):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == self.stop_at: raise FloatingPointError(f"stopped at call {self.calls}")
        return masked_bce(self.logits(module, batch), batch.labels)
    def scores(self, module, batch): return module["head"](module["body"](batch.image)).sigmoid()
'''


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    (folder / "ddp_net.py").write_text(NET)
    sys.path.insert(0, str(folder))
    try: yield __import__("ddp_net").Net
    finally: sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def faces():
    "48 frames; a third of the labels are holes, unevenly."
    made = blob_faces()
    frames, rng = made.frames.copy(), np.random.default_rng(3)
    for au in ("AU4", "AU12"): frames.loc[rng.random(len(frames)) < (.5 if au == "AU4" else .15), au] = np.nan
    return FaceSet(frames, np.asarray(made.crops), np.asarray(made.landmarks), made.card)


def trainer(devices, **params):
    return Trainer(**{**dict(epochs=3, batch_size=7, accumulate=2, lr=0.05, clip_norm=1.0, threads=1, device="cpu", progress=False, devices=devices, checkpoint_seconds=0), **params})


def checkpoint(folder): return torch.load(io.BytesIO((folder / "checkpoint.pt").read_bytes().partition(b"\n")[2]), weights_only=True)


def alike(one, two, tol=1e-5):
    "Whether two checkpoints hold the same curve and the same weights."
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=tol) and a["selection_f1"] == pytest.approx(b["selection_f1"], abs=tol) and a["lr"] == b["lr"]
    for k, v in one["module"].items(): torch.testing.assert_close(two["module"][k], v, atol=10 * tol, rtol=1e-4)


def test_two_processes_train_as_one_and_either_goes_on_with_the_others_checkpoint(net, faces, tmp_path):
    for n in (1, 2): est = net(trainer(n)).fit(faces, workdir=tmp_path / str(n))
    one, two = checkpoint(tmp_path / "1"), checkpoint(tmp_path / "2")
    alike(one, two)
    assert est.module_["head"].weight.equal(two["module"]["head.weight"]) and not est.module_.training, "the caller's module has the weights"
    assert est.predict_scores(faces).shape == (48, 5)

    # stopped in the middle of the second epoch with two processes: the error is the loss's own; one process finishes
    stopping = net(trainer(2))
    stopping.stop_at = 7     # no parameter: it is the same training
    with pytest.raises(FloatingPointError, match="stopped at call 7") as raised: stopping.fit(faces, workdir=tmp_path / "stopped")
    assert "In process" in raised.value.__notes__[0] and "in loss" in raised.value.__notes__[0]
    assert not checkpoint(tmp_path / "stopped")["finished"]
    net(trainer(1)).fit(faces, workdir=tmp_path / "stopped")
    alike(one, checkpoint(tmp_path / "stopped"))
    with pytest.raises(CheckpointError, match="of another run"): net(trainer(2, lr=0.5)).fit(faces, workdir=tmp_path / "stopped")


def test_order_of_batches_is_that_of_one_process(faces):
    "Each process notes the rows that it was given; together they are the batches of one process."
    def rows_of(devices):
        def fit():
            seen, module = [], nn.Linear(1, 2)
            def loss(module, batch):
                seen.append(batch.rows.tolist())
                return masked_bce(module(batch.image.mean((1, 2, 3))[:, None]), batch.labels)
            Trainer(epochs=2, batch_size=7, device="cpu", threads=1, progress=False, selection="last", devices=devices).fit(module, faces, loss, None)
            if devices == 1: return seen
            everyone = [None] * devices
            torch.distributed.all_gather_object(everyone, seen)
            return everyone
        return fit
    alone, (first, second) = rows_of(1)(), in_processes(rows_of(2), 2)
    assert [r[0::2] for r in alone] == first and [r[1::2] for r in alone] == second


def test_what_cannot_work_is_said_before_anything_starts(net, faces, monkeypatch):
    with pytest.raises(ValueError, match="devices is 0; expected a whole number from 1"): net(trainer(0)).fit(faces)
    with pytest.raises(ValueError, match="names one device and devices=2 asks for several"): net(trainer(2, device="cuda:0")).fit(faces)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="devices=2, but torch sees 0 CUDA devices"): net(trainer(2, device="cuda")).fit(faces)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="devices=2, but 3 processes were started"): net(trainer(2)).fit(faces)


def test_what_two_gpus_trained_predicts_on_one(faces, monkeypatch):
    class Asked(nn.Module):
        def to(self, device): raise LookupError(f"it goes to {device}")
    for name, value in (("is_available", True), ("device_count", 1)): monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr("au_study.training.loop.seeded", lambda *_, device: nullcontext())      # no generator of a GPU that isn't there
    with pytest.raises(ValueError, match="devices=2, but torch sees 1 CUDA devices"): resolve_device("auto", 2)
    with pytest.raises(LookupError, match="it goes to cuda:0"): trainer(2, device="auto").predict(Asked(), faces, None)


def test_a_process_that_is_killed_ends_the_others_with_an_account(tmp_path):
    def call():
        if torch.distributed.get_rank() == 1: os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()
    with pytest.raises(RuntimeError, match="Process 1 of 2 ended with code -9 and without an answer"): in_processes(call, 2)
    assert not [p for p in psutil.Process().children() if "_serve" in " ".join(p.cmdline())]


def test_processes_end_with_whoever_started_them(tmp_path):
    program = tmp_path / "starter.py"
    program.write_text("import time\nfrom pathlib import Path\nfrom au_study.training.ddp import in_processes\nimport os\n"
                       f"def call(): Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid())); time.sleep(120)\nin_processes(call, 2)\n")
    starter = subprocess.Popen([sys.executable, str(program)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    limit = time.monotonic() + 300
    while not all((tmp_path / r).exists() and (tmp_path / r).read_text() for r in "01"): assert starter.poll() is None and time.monotonic() < limit; time.sleep(0.05)
    pids = [int((tmp_path / r).read_text()) for r in "01"]
    starter.kill(); starter.wait()
    limit = time.monotonic() + 30
    while any(psutil.pid_exists(p) for p in pids): assert time.monotonic() < limit, "the processes outlive their starter"; time.sleep(0.05)


def test_devices_are_no_part_of_what_a_run_is(net):
    from au_study.study.runs import full_params
    assert full_params(net(trainer(1))) == full_params(net(trainer(2))) and not any("devices" in k for k in full_params(net(trainer(2))))
    assert net(trainer(1)).training_id() == net(trainer(2)).training_id()
