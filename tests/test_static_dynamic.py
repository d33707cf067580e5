"""Static-dynamic: preprocessing against scipy, GRUs and query against loops in double precision, smoothing against the rule, one pass a frame."""
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.spatial import Delaunay
from sklearn.base import clone

from au_study.faces.augment import Augment
from au_study.faces.faceset import FaceSet
from au_study.facs import FLIP_PERMUTATION, schematic_face
from au_study.static_dynamic import estimator as estimator_module
from au_study.static_dynamic.estimator import StaticDynamic, difference_scale, log_odds, paper_trainer
from au_study.static_dynamic.features import DynamicNet, StaticNet
from au_study.static_dynamic.parsing import FaceParser
from au_study.static_dynamic.preprocessing import AroundLandmarks, check_spacing, edge_image, grey_image, hull_mask, landmark_difference, outline_points, two_channels
from au_study.static_dynamic.query import AUQuery, Chained, Classifier, QuestionNorm, StaticDynamicNet, query_loss, query_order
from au_study.static_dynamic.smoothing import smooth
from au_study.study.data import data_spec
from au_study.study.manifests import load_profile, load_study
from au_study.study.published import published
from au_study.training.batches import BatchSource, blob_faces


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sigmoid(x): return 1 / (1 + np.exp(-x))


def gru_weights(gru): return [getattr(gru, f'{n}_l0').detach().double().numpy() for n in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')]


def gru_states(steps, start, gru):
    """Cho et al.'s cell, PyTorch's gate order and reset, one step after the other."""
    w, u, b, c = gru_weights(gru)
    h, out, f = start.astype(np.float64), [], len(start)
    for x in steps.astype(np.float64):
        a, d = w @ x + b, u @ h + c
        r, z = sigmoid(a[:f] + d[:f]), sigmoid(a[f:2 * f] + d[f:2 * f])
        h = (1 - z) * np.tanh(a[2 * f:] + r * d[2 * f:]) + z * h
        out.append(h)
    return np.array(out)


def linear(layer, x): return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


def norm(layer, x, question=...):
    mean, var, w, b = (t.detach().double().numpy() for t in (layer.running_mean[question], layer.running_var[question], layer.weight[question], layer.bias[question]))
    return (x - mean) / np.sqrt(var + 1e-5) * w + b


def unsettle(net, seed=0):
    """Random running statistics, so that a normalisation in evaluation is no identity."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, QuestionNorm)):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * .2); m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + .5)
            m.weight.data.copy_(torch.rand(m.weight.shape, generator=g) + .5); m.bias.data.copy_(torch.randn(m.bias.shape, generator=g) * .2)
    return net.eval()


# ---- preprocessing

@pytest.mark.parametrize('seed', range(4))
def test_hull_is_the_convex_hull(seed):
    rng = np.random.default_rng(seed)
    clouds = rng.uniform(-4, 44, (6, 12, 2))
    clouds[0] = np.round(clouds[0])                                       # points on pixels, horizontal segments
    clouds[1, :, 1] = clouds[1, 0, 1] + np.r_[np.zeros(6), 1e-3 * np.arange(6)]  # nearly flat
    y, x = np.mgrid[:40, :40]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    got = hull_mask(torch.from_numpy(clouds).double(), 40).reshape(6, -1).numpy()
    for cloud, mask in zip(clouds, got):
        hull = Delaunay(cloud)
        inside, near = hull.find_simplex(pixels) >= 0, hull.find_simplex(pixels, tol=1e-2) >= 0
        edge = near != (Delaunay(cloud.mean(0) + (cloud - cloud.mean(0)) * .999).find_simplex(pixels) >= 0)
        assert (mask == inside)[~edge].all()


def test_hull_of_real_outlines_in_single_precision_and_translation():
    marks = torch.from_numpy(schematic_face(79).astype(np.float32))[None].repeat(3, 1, 1) + torch.randn(3, 68, 2, generator=torch.Generator().manual_seed(0))
    points = outline_points(marks)
    assert (hull_mask(points, 80) != hull_mask(points.double(), 80)).float().mean() < 1e-3
    assert torch.equal(hull_mask(points + 3, 80)[:, 3:, 3:], hull_mask(points, 80)[:, :-3, :-3])
    assert hull_mask(points - 500, 80).sum() == 0


def test_edges_are_scipys_sobel():
    image = np.random.default_rng(0).random((2, 3, 17, 17)) * .2
    grey = image[:, 0] * .299 + image[:, 1] * .587 + image[:, 2] * .114
    expected = np.stack([np.hypot(ndimage.sobel(g, 0, mode='nearest'), ndimage.sobel(g, 1, mode='nearest')) for g in grey])
    np.testing.assert_allclose(grey_image(torch.from_numpy(image))[:, 0], grey, atol=1e-12)
    np.testing.assert_allclose(edge_image(torch.from_numpy(grey)[:, None])[:, 0], expected.clip(max=1), atol=1e-12)


def test_background_is_black_in_both_channels():
    marks = torch.from_numpy(schematic_face(63).astype(np.float32))[None]
    mask = hull_mask(outline_points(marks), 64)
    for outline in (True, False):
        seen = two_channels(torch.rand(1, 3, 64, 64), mask, outline)
        far = torch.nn.functional.max_pool2d(mask[:, None].float(), 3, 1, 1)[0, 0] == 0
        assert seen[0, :, far].abs().max() == 0 and seen[0, 0][~mask[0]].abs().max() == 0


def moving(subjects=3, videos=('a', 'b'), frames=6, size=48, seed=0):
    faces = blob_faces(subjects=subjects, frames=frames * len(videos), size=size, seed=seed)
    table = faces.frames.assign(video=np.tile(np.repeat(videos, frames), subjects), frame=np.tile(np.arange(frames), subjects * len(videos)))
    marks = faces.landmarks + np.random.default_rng(seed).normal(0, .7, faces.landmarks.shape).astype(np.float32)
    return FaceSet(table, faces.crops, marks, faces.card)


def test_differences_stay_in_the_video():
    faces = moving()
    for step in (1, 2, 9):
        around, keys = AroundLandmarks(faces, step), faces.frames[['subject', 'video']].agg('/'.join, axis=1).to_numpy()
        assert (keys[around.index] == keys[:, None]).all()
        frame = faces.frames['frame'].to_numpy()
        assert (around.index[:, 0] == np.arange(len(faces)) - np.minimum(step, frame)).all()
        assert (around.index[:, 2] == np.arange(len(faces)) + np.minimum(step, 5 - frame)).all()


def test_difference_by_hand_and_its_scale():
    faces = moving()
    around = AroundLandmarks(faces)
    got = landmark_difference(torch.from_numpy(around[np.arange(len(faces))]), torch.from_numpy(faces.landmarks)).numpy()
    m = faces.landmarks.astype(np.float64)
    row = 8                                                              # third frame of the second video
    expected = (m[row + 1] - m[row - 1])[17:] / np.linalg.norm(m[row, 36] - m[row, 45])
    np.testing.assert_allclose(got[row], expected.reshape(-1), atol=1e-6)
    larger = FaceSet(faces.frames, faces.crops, faces.landmarks * 3, faces.card)
    other = AroundLandmarks(larger)[np.arange(len(faces))]
    np.testing.assert_allclose(landmark_difference(torch.from_numpy(other), torch.from_numpy(larger.landmarks)).numpy(), got, atol=1e-5)
    mean, spread = difference_scale(faces)
    np.testing.assert_allclose(mean, got.mean(0), atol=1e-6); np.testing.assert_allclose(spread, got.std(0), atol=1e-5)


def test_mirroring_a_batch_is_mirroring_the_video():
    """Augment(flip=1) on a batch gives the input of a set whose crops and landmarks were all mirrored."""
    faces = moving()
    marks = faces.landmarks[:, FLIP_PERMUTATION] * [-1, 1] + [47, 0]
    mirrored = FaceSet(faces.frames, np.ascontiguousarray(faces.crops[:, :, ::-1]), marks.astype(np.float32), faces.card)
    model, rows = StaticDynamic(), np.arange(0, 30, 2)
    batch, other = (BatchSource(f, derive=model.derive).batch(rows) for f in (faces, mirrored))
    batch.image, batch.landmarks = Augment(flip=1)(batch.image, batch.landmarks, seed=0)
    for got, expected in zip(model._see(None, batch), model._see(None, other)): torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_spacing_is_checked_in_training_and_prediction():
    faces = moving()
    sparse = faces[::3]
    with pytest.raises(ValueError, match='Frames lie 3 apart'): check_spacing(sparse, 1)
    with pytest.raises(ValueError, match='Set step=3'): StaticDynamic(**small()).fit(sparse)
    StaticDynamic(**small(inputs='static')).fit(sparse)


# ---- networks in double precision

def test_static_feature_against_loops():
    torch.manual_seed(0)
    net = unsettle(StaticNet(features=10, width=.25))
    x = torch.rand(2, 2, 48, 48)
    with torch.no_grad(): maps, got = net.convolutions(x).double().numpy(), net(x).numpy()
    for b in range(2):
        steps = [maps[b, :, i, j] for i in range(maps.shape[2]) for j in range(maps.shape[3])]      # row by row
        np.testing.assert_allclose(got[b], gru_states(np.array(steps), np.zeros(10), net.gru)[-1], atol=1e-5)


def test_dynamic_feature_against_numpy():
    torch.manual_seed(0)
    net = unsettle(DynamicNet(20, 7))
    net.mean.normal_(); net.spread.uniform_(.5, 2)
    x = torch.randn(3, 20)
    _, _, _, bn, _, _, _ = layers = net.layers
    for got, d in zip(net(x).detach().numpy(), x.double().numpy()):
        d = (d - net.mean.double().numpy()) / net.spread.double().numpy()
        h = sigmoid(linear(layers[0], d + linear(net.residual, d)))
        h = sigmoid(norm(bn, linear(layers[2], h)))
        np.testing.assert_allclose(got, np.tanh(linear(layers[5], h)), atol=1e-5)


@pytest.mark.parametrize('order', ['dataset', 'reversed', 'shuffled', (12, 1, 25, 4)])
def test_query_against_the_equations(order):
    """Eq. 3: q_i, H_{i+1} = Q(emb_i, H_i), H_0 = the fused feature; the answer for an AU comes back in its own column."""
    torch.manual_seed(0)
    aus = (1, 4, 12, 25)
    columns = query_order(aus, order, seed=3)
    query, fused = AUQuery(9, columns, embedding=5), torch.randn(3, 9)
    got = query(fused).detach().numpy()
    for b in range(3):
        states = gru_states(query.table.detach().numpy()[columns], fused[b].numpy(), query.gru)
        for asked, column in enumerate(columns): np.testing.assert_allclose(got[b, column], states[asked], atol=1e-6)


def test_chained_fusion_against_loops():
    torch.manual_seed(0)
    net, s, d = Chained(6, aspects=5), torch.randn(2, 6), torch.randn(2, 6)
    got = net(s, d).detach().numpy()
    for b in range(2):
        asked = gru_states(net.aspects.detach().numpy(), s[b].numpy(), net.first)
        out = gru_states(asked, d[b].numpy(), net.second)
        weights = np.exp(out @ out.T)
        np.testing.assert_allclose(got[b], ((weights / weights.sum(1, keepdims=True)) @ out).sum(0), atol=1e-5)


def test_whole_network_against_numpy():
    torch.manual_seed(0)
    net = unsettle(StaticDynamicNet(query_order((1, 2, 4), 'shuffled', 1), points=4, features=5, embedding=3, width=.25))
    net.odds.normal_()
    x, d = torch.rand(2, 2, 48, 48), torch.randn(2, 8)
    with torch.no_grad(): got, s, f = net(x, d).softmax(-1).numpy(), net.static(x).double().numpy(), net.dynamic(d).double().numpy()
    bn0, fc0, bn1, _, fc1, bn2, _, fc2 = net.classifier.layers
    order = net.query.order.tolist()
    for b in range(2):
        states = gru_states(net.query.table.detach().numpy()[order], np.concatenate([f[b], s[b]]), net.query.gru)
        for asked, column in enumerate(order):
            h = sigmoid(norm(bn1, linear(fc0, norm(bn0, states[asked], column)), column))
            q = linear(fc2, sigmoid(norm(bn2, linear(fc1, h), column))) + [0, net.odds[column].item()]
            np.testing.assert_allclose(got[b, column], np.exp(q) / np.exp(q).sum(), atol=1e-5)


@pytest.mark.parametrize('scales', [1, 3])
def test_each_question_is_normalised_by_itself_in_training(scales):
    torch.manual_seed(0)
    x, layer = torch.randn(9, 3, 4) + torch.tensor([0., 5, -7])[:, None], QuestionNorm(4, 3, scales)
    twins = [torch.nn.BatchNorm1d(4) for _ in range(3)]
    for i, t in enumerate(twins):
        for name in ('weight', 'bias'):
            own = getattr(layer, name)
            own.data.normal_(generator=torch.Generator().manual_seed(len(name)))
            setattr(t, name, torch.nn.Parameter(own.data[i % scales].clone()))
    expected = torch.stack([t(x[:, i]) for i, t in enumerate(twins)], 1)
    torch.testing.assert_close(layer(x), expected); torch.testing.assert_close(layer.running_var, torch.stack([t.running_var for t in twins]))
    layer.eval(); [t.eval() for t in twins]
    torch.testing.assert_close(layer(x), torch.stack([t(x[:, i]) for i, t in enumerate(twins)], 1))


@pytest.mark.parametrize('query', ['gru', 'parallel'])
def test_fresh_answers_are_the_base_rates(query):
    """Whatever the network does, its start is moved by the log odds of the training set; one AU in a hundred isn't met with even odds."""
    faces = moving(subjects=6, frames=30)
    table = faces.frames.assign(AU4=np.arange(len(faces)) % 100 == 0, AU12=np.nan).astype({'AU4': float})
    table.loc[:3, 'AU12'] = [1., 0, 1, 1]
    faces = FaceSet(table, faces.crops, faces.landmarks, faces.card)
    on, n = np.nansum(faces.labels(), 0), np.isfinite(faces.labels()).sum(0)
    np.testing.assert_allclose(log_odds(faces), np.log((on + .5) / (n - on + .5)), atol=1e-6)
    model, fair = StaticDynamic(**small(query=query)), StaticDynamic(**small(query=query, base_rates=False))
    torch.manual_seed(0); net = model.build(faces).eval()
    torch.manual_seed(0); even = fair.build(faces).eval()
    x = torch.rand(2, 2, 48, 48), torch.randn(2, 102)
    with torch.no_grad(): moved = net(*x) - even(*x)
    torch.testing.assert_close(moved, torch.stack([torch.zeros(2), log_odds(faces)], -1).expand_as(moved), atol=1e-5, rtol=0)
    uncoded = FaceSet(table.assign(AU12=np.nan), faces.crops, faces.landmarks, faces.card)
    assert log_odds(uncoded)[1] == 0


def test_base_rates_can_be_learned():
    """Answers that tell nothing: a classifier that normalises each question must still find each rate, which one scale and bias can't."""
    rates, loss = torch.tensor([.05, .2, .5, .8]), {}
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(512, 4, generator=g) < rates).float()
    answers = torch.randn(512, 4, 12, generator=g)
    best = torch.nn.functional.binary_cross_entropy(labels.mean(0).expand_as(labels), labels).item()
    for statistics in ('own', 'released'):
        torch.manual_seed(0)
        net = Classifier(12, 4, statistics)
        optimiser = torch.optim.Adam(net.parameters(), lr=.02)
        for _ in range(60):
            found = query_loss(net(answers), labels); found.backward(); optimiser.step(); optimiser.zero_grad()
        loss[statistics] = found.item() - best
    assert loss['own'] < .02 < .1 < loss['released']


def test_released_sizes():
    net = StaticDynamicNet(list(range(8)), fusion='chained', embedding=96, statistics='released')
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(net.static), count(net.dynamic), count(net)) == (191_952, 78_790, 443_790)
    assert StaticDynamicNet(list(range(8))).query.table.shape == (8, 64)      # the paper's


def test_uncoded_cells_have_no_gradient():
    logits = torch.randn(4, 3, 2, requires_grad=True)
    labels = torch.tensor([[1., 0, np.nan]] * 4)
    for on in ('logits', 'probabilities'):
        g, = torch.autograd.grad(query_loss(logits, labels, on), logits)
        assert (g[:, 2] == 0).all() and (g[:, :2] != 0).all()


# ---- estimator

def small(**changes):
    trainer = paper_trainer(epochs=1, batch_size=12, lr=5e-3, selection='last', progress=False, threads=1)
    return {**dict(width=.25, features=8, smoothing='none', trainer=trainer), **changes}


@pytest.mark.parametrize('change', [
    dict(mask='none'), dict(mask='parsing'), dict(forehead=0.), dict(outline=False), dict(points='all'), dict(step=2), dict(standardise=False),
    dict(inputs='static'), dict(inputs='dynamic'),
    dict(features=6), dict(width=.5), dict(read='mean'), dict(memory=5), dict(statistics='shared'), dict(statistics='released'), dict(base_rates=False),
    dict(fusion='projected'), dict(fusion='chained'), dict(query='parallel'),
    dict(embedding=7), dict(order='reversed'),
    dict(order='shuffled', order_seed=0), dict(loss_on='probabilities')], ids=str)
def test_every_parameter_changes_something(change, tmp_path, monkeypatch):
    monkeypatch.setattr(estimator_module, 'world_parser', lambda: torch.manual_seed(1) and FaceParser())
    faces = moving(frames=4)
    base, other = (StaticDynamic(**small(**c)).fit(faces) for c in ({}, change))
    if change.get('order') == 'shuffled': assert other.module_.query.order.tolist() == query_order((4, 12), 'shuffled', 0)
    a, b = (m.predict_scores(faces).filter(like='AU') for m in (base, other))
    same = change.get('order') == 'shuffled' and other.module_.query.order.tolist() == [0, 1]
    assert a.equals(b) == same
    other.save(tmp_path / 'model')
    assert StaticDynamic.load(tmp_path / 'model').predict_scores(faces).filter(like='AU').equals(b)


def test_shuffled_orders_differ_by_seed():
    aus = (1, 2, 4, 6, 12, 15, 20, 25)
    assert len({tuple(query_order(aus, 'shuffled', s)) for s in range(5)}) == 5


def test_parser_is_frozen_and_saved(tmp_path, monkeypatch):
    parser = FaceParser()
    monkeypatch.setattr(estimator_module, 'world_parser', lambda: parser)
    before = {k: v.clone() for k, v in parser.state_dict().items()}
    model = StaticDynamic(**small(mask='parsing')).fit(moving(frames=4))
    assert all(torch.equal(v, before[k]) for k, v in model.module_.parser.state_dict().items())
    monkeypatch.setattr(estimator_module, 'world_parser', lambda: pytest.fail('a saved model brings its own parser'))
    model.save(tmp_path / 'model')
    loaded = StaticDynamic.load(tmp_path / 'model')
    assert all(torch.equal(v, before[k]) for k, v in loaded.module_.parser.state_dict().items())


def test_smoothing_is_the_released_rule_at_every_threshold():
    """After a frame where an AU was found, it stays on for the next three frame numbers of the same video."""
    rng = np.random.default_rng(0)
    parts = [pd.DataFrame({'subject': s, 'video': v, 'frame': np.sort(rng.choice(60, 40, replace=False))}) for s in 'xy' for v in 'ab']
    table = pd.concat(parts, ignore_index=True)
    table[['AU1', 'AU2']] = rng.random((len(table), 2))
    held, mean = smooth(table, 'hold', 3), smooth(table, 'mean', 2)
    for threshold in (.3, .5, .93):
        for i, row in table.iterrows():
            past = table[(table['subject'] == row['subject']) & (table['video'] == row['video']) & (table['frame'] <= row['frame']) & (table['frame'] >= row['frame'] - 3)]
            for au in ('AU1', 'AU2'): assert (held.loc[i, au] >= threshold) == (past[au] >= threshold).any()
    for i, row in table.iterrows():
        around = table[(table['subject'] == row['subject']) & (table['video'] == row['video']) & ((table['frame'] - row['frame']).abs() <= 2)]
        assert mean.loc[i, 'AU2'] == pytest.approx(around['AU2'].mean())


def test_smoothing_shares_the_training():
    assert len({StaticDynamic(smoothing=s, smooth_frames=n).training_id() for s in ('none', 'hold', 'mean') for n in (1, 3)}) == 1
    assert StaticDynamic(step=2).training_id() != StaticDynamic().training_id()
    faces = moving()
    model = StaticDynamic(**small()).fit(faces)
    raw = model.predict_scores(faces)
    for how in ('hold', 'mean'): pd.testing.assert_frame_equal(model.set_params(smoothing=how).predict_scores(faces), smooth(raw, how, 3))


class Watched:
    """Crops of a long video that exist a few at a time; notes which rows were read together."""
    def __init__(self, n, size): self.shape, self.dtype, self.ndim, self.reads = (n, size, size, 3), np.dtype(np.uint8), 4, []
    def __len__(self): return self.shape[0]
    def __getitem__(self, rows):
        rows = np.asarray(rows)
        self.reads.append(rows)
        return (np.arange(self.shape[1] ** 2 * 3).reshape(self.shape[1:]) * 7 + rows[:, None, None, None]).astype(np.uint8)
    def __array__(self, *a, **k): raise AssertionError('the crops were asked for all at once')


def test_frames_of_a_long_video_pass_once_and_are_never_held():
    faces, most = moving(), {}
    model = StaticDynamic(**small(smoothing='hold')).fit(faces)
    for n in (500, 3000):
        table = pd.DataFrame({'subject': 's', 'video': 'v', 'frame': np.arange(n), 'AU4': 0., 'AU12': 1.})
        marks = np.broadcast_to(schematic_face(47).astype(np.float32), (n, 68, 2)) + np.sin(np.arange(n) / 9)[:, None, None].astype(np.float32)
        crops, passed = Watched(n, 48), []
        hook = model.module_.register_forward_pre_hook(lambda module, inputs, passed=passed: passed.append(len(inputs[0])))
        scores = model.predict_scores(FaceSet(table, crops, marks, faces.card))
        hook.remove()
        assert len(scores) == n and sum(passed) == n                                     # one pass a frame
        assert sorted(np.concatenate(crops.reads)) == list(range(n))                     # every crop is read once
        most[n] = max(map(len, crops.reads))
    assert most[500] == most[3000] == 4 * model.trainer.batch_size                    # and no more at a time


def test_fit_repeats_itself():
    faces = moving()
    model = StaticDynamic(**small()).fit(faces)
    assert clone(model).fit(faces).predict_scores(faces).equals(model.predict_scores(faces))


@pytest.mark.parametrize('change,message', [
    (dict(mask='oval'), "mask must be 'hull', 'parsing' or 'none'"), (dict(points='68'), 'points must be one of'), (dict(step=0), 'step is 0'), (dict(inputs='neither'), 'inputs must be one of'),
    (dict(fusion='sum'), 'fusion must be one of'), (dict(query='lstm'), 'query must be one of'), (dict(order='random'), "order must be"), (dict(read='max'), "read must be 'gru' or 'mean'"),
    (dict(memory=-1), 'memory is -1'), (dict(statistics='none'), "statistics must be"),
    (dict(loss_on='scores'), "loss_on must be"), (dict(smoothing='median'), 'smoothing must be one of'), (dict(smooth_frames=-1), 'smooth_frames is -1')])
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message): StaticDynamic(**small(**change)).fit(moving(frames=4))


# ---- studies

def test_the_printed_number_and_the_study():
    assert published('static_dynamic', 1).loc['score', 'Static-dynamic'] == .56
    study = load_study('static_dynamic_table1')
    assert study.metric == 'abaw' and study.protocol['aus'] == [1, 2, 4, 6, 12, 15, 20, 25]
    for row in study.rows: StaticDynamic().set_params(**row.params)
    assert all(len(row.params) <= 1 for row in study.rows)                                # each row asks one thing
    for profile in ('smoke', 'quick', 'full'):
        sizes = load_profile(profile)
        model = StaticDynamic().set_params(**sizes.estimators['static_dynamic'])
        assert model.step >= sizes.world['affwild2_neighbours']['stride']
        assert data_spec('affwild2', sizes, **study.data)['sizes']['crop'] == {'smoke': 64, 'quick': 80, 'full': 112}[profile]   # full: the released code's
