"""AR_ConvLSTM, AR_2stream and the timing peers: against slow references, and the promises of their estimators."""
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from au_study.au_rcnn import two_stream as ts
from au_study.au_rcnn.convlstm import ARConvLSTM, ConvLSTM, check_spacing, roi_maps
from au_study.au_rcnn.estimator import AURCNN, paper_trainer
from au_study.au_rcnn.network import backbone_parts
from au_study.au_rcnn.peers import LCN, LiveBytes, LocallyConnected2d, ROINets, inference_times, timing_models
from au_study.au_rcnn.two_stream import ARTwoStream, FlowStack, batch_flow, cached_flow, mirror_flow, pack, unpack
from au_study.faces.augment import Augment, flip_faces
from au_study.study.plan import make_plan
from au_study.training.batches import BatchSource, FaceBatch, blob_faces
from au_study.training.estimator import AUEstimator

SMALL = dict(backbone="resnet18", width=.0625, depth=.5, stride=8, roi_size=4)


def quick(**changes):
    return paper_trainer(**{**dict(epochs=1, batch_size=8, lr=.01, schedule="constant", selection="last", threads=1, progress=False), **changes})


@pytest.fixture
def faces(tmp_path, monkeypatch):
    monkeypatch.setenv("AU_STUDY_CACHE", str(tmp_path / "cache"))
    return blob_faces(subjects=3, frames=8, size=32)


# ---- ConvLSTM against a reference with its own convolution and its own gradients

def shifted(a, dy, dx):
    "a [C, H, W] moved so that place (y, x) holds a[y + dy, x + dx], zero outside; no convolution of torch is used."
    C, H, W = a.shape
    rows = [a[:, y + dy] if 0 <= y + dy < H else torch.zeros(C, W, dtype=a.dtype) for y in range(H)]
    columns = torch.stack(rows, 1)
    return torch.stack([columns[:, :, x + dx] if 0 <= x + dx < W else torch.zeros(C, H, dtype=a.dtype) for x in range(W)], 2)


def reference(x, look, bias, recall, peep):
    "One timeline, one layer: x [T, C, H, W]; gates in the order i, f, o, g."
    D, k = len(bias) // 4, look.shape[-1]
    h = c = torch.zeros(D, *x.shape[2:], dtype=x.dtype)
    out = []
    for frame in x:
        z = bias[:, None, None].expand(-1, *x.shape[2:])
        for a in range(k):
            for b in range(k):
                z = z + torch.einsum("oc,chw->ohw", look[:, :, a, b], shifted(frame, a - k // 2, b - k // 2))
                z = z + torch.einsum("oc,chw->ohw", recall[:, :, a, b], shifted(h, a - k // 2, b - k // 2))
        i, f, o, g = z[:D], z[D:2 * D], z[2 * D:3 * D], z[3 * D:]
        if peep is not None: i, f = i + peep[0] * c, f + peep[1] * c
        c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
        if peep is not None: o = o + peep[2] * c
        h = torch.tanh(c) / (1 + torch.exp(-o))
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize("lines,layers,kernel,peephole", [(1, 1, 3, False), (3, 1, 3, False), (3, 2, 1, False), (1, 2, 3, True), (3, 1, 3, True)])
def test_convlstm_values_and_gradients(lines, layers, kernel, peephole):
    torch.manual_seed(lines + 10 * layers + peephole)
    model = ConvLSTM(3, 2, kernel, layers, lines, (4, 3) if peephole else None).double()
    for p in model.parameters(): nn.init.normal_(p, std=.6)
    x = torch.randn(2, 4, 3, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, *model.parameters()]
    slow = x
    for cell in model.cells:
        per = [w.reshape(lines, -1, *w.shape[1:]) for w in (cell.look.weight, cell.look.bias, cell.recall.weight)]
        slow = torch.stack([torch.stack([reference(b[:, l], *[w[l % lines] for w in per], None if cell.peep is None else cell.peep[:, l % lines]) for l in range(3)], 1) for b in slow])
    out, weight = model(x), torch.randn(2, 4, 3, 2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(out, slow, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((out * weight).sum(), leaves), torch.autograd.grad((slow * weight).sum(), leaves)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_convlstm_in_half_the_bytes():
    model, x = ConvLSTM(4, 8, lines=2), torch.randn(1, 3, 2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16): out = model(x)
    torch.testing.assert_close(out.float(), model(x), atol=.03, rtol=.1)


# ---- AR_ConvLSTM

def test_convlstm_estimator_round_trip(faces, tmp_path):
    model = ARConvLSTM(**SMALL, T=3, step=2, trainer=quick()).fit(faces)
    scores = model.predict_scores(faces)
    assert list(scores.columns) == ["subject", "video", "frame", "AU4", "AU12"] and scores[faces.columns].to_numpy().min() >= 0
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(AUEstimator.load(tmp_path / "model").predict_scores(faces), scores)
    again = ARConvLSTM(**SMALL, T=3, step=2, trainer=quick()).fit(faces)
    pd.testing.assert_frame_equal(again.predict_scores(faces), scores, check_exact=True)  # repeatable to the bit


def test_convlstm_resumes(faces, tmp_path):
    whole = ARConvLSTM(**SMALL, T=3, step=2, trainer=quick(epochs=2)).fit(faces)

    class Killed(ARConvLSTM):
        left = 4
        def loss(self, module, batch):
            Killed.left -= 1
            if Killed.left < 0: raise KeyboardInterrupt
            return super().loss(module, batch)
    Killed.__qualname__, Killed.__module__ = ARConvLSTM.__qualname__, ARConvLSTM.__module__
    trainer = quick(epochs=2, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt): Killed(**SMALL, T=3, step=2, trainer=trainer).fit(faces, workdir=tmp_path)
    resumed = ARConvLSTM(**SMALL, T=3, step=2, trainer=trainer).fit(faces, workdir=tmp_path)
    for a, b in zip(whole.module_.state_dict().values(), resumed.module_.state_dict().values()): assert torch.equal(a, b)


def test_shared_frames_change_nothing(faces):
    model = ARConvLSTM(**SMALL, T=4, step=1)
    torch.manual_seed(0)
    module = model.build(faces).eval()
    batch = BatchSource(faces, model.offsets).batch(range(10))
    calls = []
    whole, module.maps = module.maps, lambda images, boxes: calls.append(len(images)) or whole(images, boxes)
    with torch.inference_mode():
        fast = model.scores(module, batch)
        batch.clip = None
        slow = model.scores(module, batch)
    assert calls == [10, 40]
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)


def test_augmented_clips_are_not_shared(faces):
    "After augmentation two clips hold different pictures of one frame; sharing them would mix the clips."
    model = ARConvLSTM(**SMALL, T=3, step=1)
    torch.manual_seed(0)
    module = model.build(faces).eval()
    batch = BatchSource(faces, model.offsets).batch(range(6))
    for b in range(0, 6, 2):
        image, marks, _ = flip_faces(batch.image[b], batch.landmarks[b]); batch.image[b], batch.landmarks[b] = image, marks
    with torch.inference_mode():
        fast = model.scores(module, batch)
        batch.clip = None
        torch.testing.assert_close(fast, model.scores(module, batch), atol=1e-6, rtol=0)


def test_loss_sees_the_labels_of_each_frame(faces):
    model = ARConvLSTM(**SMALL, T=3, step=1, trainer=quick(augment=None))
    module = model.build(faces).eval()
    batch = BatchSource(faces, model.offsets).batch(range(2, 8))
    logits = module(batch.image, torch.zeros(6, 3, len(module.members), 4) + torch.tensor([4., 4., 28., 28.]))
    assert logits.shape[:2] == (6, 3)
    base = model.loss(module, batch)
    batch.clip_labels[:, 0] = 1 - batch.clip_labels[:, 0]
    assert not torch.equal(model.loss(module, batch), base)
    last = ARConvLSTM(**SMALL, T=3, step=1, loss_frames="last")
    changed = last.loss(module, batch)
    batch.clip_labels[:, 0] = torch.nan
    assert torch.equal(last.loss(module, batch), changed) and torch.isfinite(model.loss(module, batch))


def test_clips_of_stills_are_refused(faces):
    sparse = faces[::4]
    with pytest.raises(ValueError, match="lie 4 apart.*Set step=4"): ARConvLSTM(**SMALL, T=3, step=1, trainer=quick()).fit(sparse)
    with pytest.raises(ValueError, match="optical flow looks 1 frames back"): ARTwoStream(**SMALL, trainer=quick()).fit(sparse)
    check_spacing(sparse, 4, "a clip")
    ARConvLSTM(**SMALL, T=1, step=1, trainer=quick()).fit(sparse)                                # a clip of one frame needs no neighbour


def test_dynamic_models_on_vgg_and_without_pyramid(faces):
    vgg = dict(backbone="vgg16", width=.0625, depth=.5, stride=8, roi_size=4, batch_norm=True)
    for model in (ARConvLSTM(**vgg, T=2, step=1, trainer=quick()), ARTwoStream(**vgg, T=2, trainer=quick())):
        assert np.isfinite(model.fit(faces).predict_scores(faces)[faces.columns].to_numpy()).all()
    with pytest.raises(ValueError, match="fpn=False"): roi_maps(backbone_parts("resnet18", .0625, fpn=True), torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 4), 4, None)


# ---- optical flow

def test_flow_is_computed_once_and_shared(faces, monkeypatch):
    calls = []
    plain = ts.dis_flow
    monkeypatch.setattr(ts, "dis_flow", lambda *a: calls.append(1) or plain(*a))
    whole = FlowStack(faces, T=4)
    assert len(calls) == 3 * 7                                                                   # the last frame of a video has no next
    part = FlowStack(faces[8:16], T=4)
    assert len(calls) == 21
    np.testing.assert_array_equal(whole[np.arange(8, 16)], part[np.arange(8)])
    FlowStack(faces, T=4, dtype="int8")
    assert len(calls) == 42


def test_interrupted_flow_leaves_no_file(faces, monkeypatch, tmp_path):
    calls, plain = [], ts.dis_flow
    def broken(*a):
        calls.append(1)
        if len(calls) == 5: raise KeyboardInterrupt
        return plain(*a)
    monkeypatch.setattr(ts, "dis_flow", broken)
    with pytest.raises(KeyboardInterrupt): cached_flow(faces)
    assert not list((tmp_path / "cache" / "flow").iterdir())
    monkeypatch.setattr(ts, "dis_flow", plain)
    assert [np.load(p).shape for p in cached_flow(faces)] == [(8, 2, 32, 32)] * 3


def test_flow_stack_is_centred_and_stays_in_its_video(faces):
    flow = np.concatenate([unpack(np.load(p)) for p in cached_flow(faces)])
    stack = FlowStack(faces, T=4)
    for row in (0, 3, 7, 8, 12, 23):
        first = row // 8 * 8
        wanted = [min(max(row + k, first), first + 7) for k in (-2, -1, 0, 1)]
        np.testing.assert_array_equal(stack[np.array([row])][0], flow[wanted].reshape(8, 32, 32))
    again = stack[np.array([5, 20, 5])]
    np.testing.assert_array_equal(again[0], again[2])


def test_packed_flow():
    flow = np.random.default_rng(0).normal(0, .5, (4, 2, 32, 32)).astype(np.float32).clip(-1, 1)
    assert np.abs(unpack(pack(flow, "int8")) - flow).max() <= ts.BOUND * 32 / 254 + 1e-6
    assert np.abs(unpack(pack(flow, "float16")) - flow).max() <= 5e-4
    assert unpack(pack(np.full((1, 2, 32, 32), 9., np.float32), "int8")).max() == pytest.approx(1.)
    with pytest.raises(ValueError, match="flow_dtype must be"): pack(flow, "int16")


def test_mirrored_batches_get_mirrored_flow(faces):
    model = ARTwoStream(**SMALL, T=2, trainer=quick())
    batch = BatchSource(faces, derive=model.derive).batch(range(6))
    batch.landmarks += torch.arange(6.)[:, None, None] / 7 * torch.tensor([1., 0.])              # no longer symmetric
    batch.derived["landmarks"] = batch.landmarks.clone()
    flow = batch.derived["flow"]
    image, marks, _ = flip_faces(batch.image[:3], batch.landmarks[:3])
    mixed = FaceBatch(torch.cat([image, batch.image[3:]]), torch.cat([marks, batch.landmarks[3:]]), batch.labels, batch.intensities, batch.rows, derived=batch.derived)
    asymmetric = (marks - batch.landmarks[:3]).abs().amax((1, 2)) > 0
    got = batch_flow(mixed)
    assert torch.equal(got[3:], flow[3:])
    assert torch.equal(got[:3][asymmetric], mirror_flow(flow[:3])[asymmetric]) and asymmetric.any()
    expected = flow[:3].flip(-1).clone(); expected[:, 0::2] *= -1
    assert torch.equal(mirror_flow(flow[:3]), expected)
    mixed.landmarks = mixed.landmarks + 2.
    with pytest.raises(ValueError, match="follows mirroring only"): batch_flow(mixed)


def test_two_stream_round_trip(faces, tmp_path):
    make = lambda: ARTwoStream(**SMALL, T=2, trainer=quick(selection="inner", inner_fraction=.4, epochs=2))
    model = make().fit(faces)
    scores = model.predict_scores(faces)
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(AUEstimator.load(tmp_path / "model").predict_scores(faces), scores)
    pd.testing.assert_frame_equal(make().fit(faces).predict_scores(faces), scores, check_exact=True)
    with pytest.raises(ValueError, match="has shift"): ARTwoStream(**SMALL, T=2, trainer=quick(augment=Augment(shift=.1))).fit(faces)


def test_parameters_are_only_parameters():
    for cls in (ARConvLSTM, ARTwoStream):
        model = cls()
        assert set(vars(model)) == set(model.get_params(deep=False)) and issubclass(cls, AURCNN)
        assert set(cls.predict_only) <= set(model.get_params(deep=False))
    assert ARConvLSTM(T=4, step=3).offsets == (-9, -6, -3, 0) and ARTwoStream().offsets == (0,)


# ---- peers and the stopwatch

def test_locally_connected_layer_against_loops():
    torch.manual_seed(0)
    layer, x = LocallyConnected2d(2, 3, 4).double(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    nn.init.normal_(layer.bias)
    padded, out = torch.zeros(2, 2, 6, 6, dtype=torch.float64), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    padded[:, :, 1:5, 1:5] = x
    for y in range(4):
        for z in range(4):
            kernel = layer.weight[4 * y + z].T.reshape(3, 2, 3, 3)
            out[:, :, y, z] = torch.einsum("bchw,ochw->bo", padded[:, :, y:y + 3, z:z + 3], kernel) + layer.bias[4 * y + z]
    torch.testing.assert_close(layer(x), out)


def test_roi_nets_regions_have_their_own_weights():
    torch.manual_seed(0)
    net = ROINets(5, .0625, .5, 8, regions=4, features=6).eval()
    images, centres = torch.rand(1, 3, 64, 64), torch.tensor([[[10., 10.], [50., 12.], [30., 40.], [0., 63.]]])
    seen = {}
    net.fc.register_forward_pre_hook(lambda m, a: seen.__setitem__("x", a[0].clone()))
    net(images, centres); base = seen["x"]
    with torch.no_grad(): net.kernels[2] *= -1
    net(images, centres)
    assert ((seen["x"] - base).abs() > 0).view(4, 6).any(1).tolist() == [False, False, True, False]


def test_inference_times():
    sizes = dict(size=48, width=.0625, depth=.1, stride=8, roi_size=4, vgg_depth=.7, T=2)
    table = inference_times(batch=2, repeats=2, warmup=1, threads=1, **sizes)
    assert list(table.index)[:-1] == list(timing_models(**sizes)) and (table["ms"] > 0).all() and table["memory_mb"].iloc[:-1].gt(0).all()
    assert LCN(12, 48, .0625, .7, 8).local.grid == 3
    with pytest.raises(ValueError, match="at least 1"): inference_times(repeats=0, **sizes)


def test_live_bytes_sees_views_and_releases():
    x = torch.zeros(256, 1024)                                                                   # 1 MB
    with LiveBytes() as watch:
        a = x + 1; b = a.view(-1)[:5]; a += 1
        assert watch.peak == 2**20
        c = a * 2; del a, b
        d = c + c
    assert watch.peak == 2 * 2**20 and watch.live == 2 * 2**20
    del c, d
    assert watch.live == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    sizes = dict(size=64, width=.0625, depth=.1, stride=8, roi_size=4, vgg_depth=.7, T=2)
    for name, make in timing_models(**sizes, batch=2).items():
        torch.manual_seed(0)
        net, inputs = make(); net.eval()
        with torch.inference_mode():
            here = net(*inputs)
            there = net.cuda()(*[i.cuda() for i in inputs]).cpu()
        torch.testing.assert_close(there, here, atol=2e-3, rtol=2e-2, msg=name)
    table = inference_times(device="cuda", repeats=2, **sizes)
    assert (table["ms"] > 0).all() and table["memory_mb"].iloc[:-1].gt(0).all()


# ---- what the profiles make of it

def _course(run):
    "Images and steps of a training, in frames of its training set, and the shares of it at which the rate begins to fall and falls by steps."
    p = run["parameters"]["params"]
    t = {k.removeprefix("trainer__"): v for k, v in p.items() if k.startswith("trainer__")}
    clip = p["T"] if run["parameters"]["estimator"] == "ar_convlstm" else 1
    return clip * t["epochs"], t["epochs"] / t["batch_size"], t["warmup_epochs"] / t["epochs"], t["step_epochs"] / t["epochs"]


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_dynamic_models_see_as_many_images_as_single_frames(profile):
    "A gain of memory or of flow must not be the gain of a longer training."
    runs = {row.rpartition("/")[2]: r for r in make_plan(["au_rcnn_table5_video", "au_rcnn_table8_video"], profile).runs.values() for row in r["rows"]}
    single, flow, memory = (_course(runs[row]) for row in ("AR_res", "AR_2stream", "AR_ConvLSTM"))
    assert flow == single
    assert memory[0] == pytest.approx(single[0], rel=.2)                              # 9 for 8 in quick, 30 for 25 in full
    if profile == "quick": assert memory[1:3] == single[1:3]
    else: assert memory[2:] == pytest.approx(single[2:])


@pytest.mark.parametrize("profile", ["quick", "full", "smoke"])
def test_the_durations_are_learnt_from_as_much_as_table_5(profile):
    "Where nothing is learnt no cause can show; the untouched world is trained on once for both."
    runs = make_plan(["au_rcnn_table5_video", "au_rcnn_duration"], profile).runs.values()
    shared = [r["rows"] for r in runs if any(row.endswith(" x1") for row in r["rows"])]
    assert shared and all(f"au_rcnn_table5_video/{row.rpartition('/')[2].removesuffix(' x1')}" in rows for rows in shared for row in rows if row.endswith(" x1"))
    assert len({repr(r["parameters"]["data"]["sizes"]) for r in runs}) == 1
    factors = {r["parameters"]["data"].get("knobs", {}).get("duration_factor", 1) for r in runs}
    assert factors == {.25, 1, 2}
