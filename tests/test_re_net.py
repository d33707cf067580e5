"""RE-Net: Eq. 3-5 against loops in double precision, one pass against the loop over AUs, the promises of the estimators, and what its studies compare."""
import itertools
import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from au_study.datasets.layouts import write_layout
from au_study.datasets.prepare import prepare
from au_study.faces.faceset import FaceSet
from au_study.faces.frames import KEYS, read_frames
from au_study.faces.landmarks import Detection
from au_study.facs import schematic_face
from au_study.nets.resnet import resnet18
from au_study.re_net.adaptive_bn import AdaptiveBatchNorm2d, adapt, adaptive_layers
from au_study.re_net.analyses import correlation_sweep
from au_study.re_net.estimator import RENet, ResNetBaseline, blank_labels, crop_images, duplicate_frames, paper_trainer
from au_study.re_net.figures import drawn_auc, drawn_pcc, probe_scores
from au_study.re_net.network import PlainNetwork, RENetwork, draw_au, network_loss, resnet_parts
from au_study.re_net.one_pass import OnePass, au_by_au
from au_study.re_net.relations import GraphError, Relation, label_graph, mixing_weights, relation_graph, shuffle_graph
from au_study.study.claims import load_claims
from au_study.study.config import add_set
from au_study.study.data import data_folds, data_spec, full_labels, open_data, prepare_known, world_intensities
from au_study.study.manifests import Profile, load_profile, load_study, project_root, study_names
from au_study.study.plan import row_runs, sizes_for, what_fits
from au_study.study.published import printed
from au_study.study.runs import full_params, make_estimator
from au_study.training.batches import BatchSource, blob_faces
from au_study.world.dynamics import load_preset, subject_names, target_correlation
from au_study.world.world import FaceWorld, world_card

NAMES = ['AU1', 'AU2', 'AU4', 'AU12']


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def signed_graph(seed=0, k=4):
    """Symmetric, both signs, no denominator near zero."""
    values = np.random.default_rng(seed).uniform(-.5, .6, (k, k))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return pd.DataFrame(values, index=NAMES[:k], columns=NAMES[:k])


def book(x, aus, omega, gamma, beta, mean, var, training, denominator, shared, eps=1e-5):
    """Eq. 3-5 in numpy-like loops: output, new running mean, new running variance."""
    out, mean, var = torch.zeros_like(x), mean.clone(), var.clone()
    old_mean, old_var = mean.clone(), var.clone()
    for c in sorted(set(aus)):
        mine = [i for i, a in enumerate(aus) if a == c]
        row = 0 if shared else c
        below = {'signed': omega[c].sum(), 'absolute': omega[c].abs().sum(), 'none': torch.tensor(1., dtype=x.dtype)}[denominator]
        for f in range(x.shape[1]):
            g = sum(omega[c, k] * gamma[k, f] for k in range(len(omega))) / below
            b = sum(omega[c, k] * beta[k, f] for k in range(len(omega))) / below
            if training:
                pool = x[:, f] if shared else x[mine, f]
                m, v = pool.mean(), pool.var(unbiased=False)
                mean[row, f] = .9 * old_mean[row, f] + .1 * m.detach()
                var[row, f] = .9 * old_var[row, f] + .1 * v.detach() * pool.numel() / (pool.numel() - 1)
            else: m, v = old_mean[row, f], old_var[row, f]
            for i in mine: out[i, f] = g * (x[i, f] - m) / torch.sqrt(v + eps) + b
    return out, mean, var


@pytest.mark.parametrize('denominator,statistics,training,learnable', itertools.product(['signed', 'absolute', 'none'], ['own', 'shared'], [True, False], [True, False]))
def test_layer_equals_the_equations_in_double_precision(denominator, statistics, training, learnable):
    torch.set_default_dtype(torch.float64)
    try:
        for seed, aus in ((0, [2] * 7), (1, [3, 0, 0, 1, 3, 3, 2])):
            generator = torch.Generator().manual_seed(seed)
            graph = signed_graph(seed)
            layer = AdaptiveBatchNorm2d(3, Relation(graph, denominator, learnable), statistics).train(training)
            with torch.no_grad():
                for p in (layer.weight, layer.bias, layer.running_mean): p.copy_(torch.randn(p.shape, generator=generator))
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + .5)
            omega = torch.tensor(graph.to_numpy()).requires_grad_()
            x = torch.randn(7, 3, 3, 2, generator=generator, requires_grad=True)
            want, mean, var = book(x, aus, omega, layer.weight, layer.bias, layer.running_mean, layer.running_var, training, denominator, statistics == 'shared')
            got = layer(x, aus[0] if seed == 0 else torch.tensor(aus))
            weight = torch.randn(x.shape, generator=generator)
            leaves = [x, layer.weight, layer.bias]
            a, b = (torch.autograd.grad((y * weight).sum(), [*leaves, graph_leaf], allow_unused=True) for y, graph_leaf in ((want, omega), (got, layer.relation.omega if learnable else x)))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
            for p, q in zip(a[:3], b[:3]): torch.testing.assert_close(p, q, rtol=0, atol=1e-11)
            if learnable: torch.testing.assert_close(a[3] * (1 - torch.eye(4)), b[3], rtol=0, atol=1e-11)      # the diagonal is held at one
            torch.testing.assert_close(layer.running_mean, mean, rtol=0, atol=1e-12)
            torch.testing.assert_close(layer.running_var, var, rtol=0, atol=1e-12)
    finally: torch.set_default_dtype(torch.float32)


def test_gradcheck_of_mixed_aus():
    layer = AdaptiveBatchNorm2d(2, Relation(signed_graph())).double()
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, torch.tensor([0, 1, 1, 3, 0])), (x,))


def test_denominators_near_zero_are_refused_by_name():
    graph = pd.DataFrame([[1, -.99], [-.2, 1]], index=['AU12', 'AU15'], columns=['AU12', 'AU15'])
    with pytest.raises(GraphError, match=re.escape('AU12 (0.01) sum to nearly zero')): Relation(graph)
    assert Relation(graph, 'absolute').mix()[0].tolist() == pytest.approx([1 / 1.99, -.99 / 1.99])
    with pytest.raises(GraphError, match='use denominator|Use denominator'): mixing_weights(torch.tensor([[1., -1.]]))


def test_a_shuffled_graph_is_the_same_graph_with_other_names():
    graph = signed_graph()
    for seed in range(20):
        other = shuffle_graph(graph, seed)
        assert np.allclose(np.linalg.eigvalsh(other), np.linalg.eigvalsh(graph)) and not np.allclose(other, graph)
    assert relation_graph('learnable', graph, 3).equals(relation_graph('learnable', graph, 3))


def test_adapting_keeps_the_pretrained_answer_for_every_au():
    plain = resnet18(width=.125, depth=.5, n_out=2)
    plain(torch.rand(6, 3, 40, 40))
    for m in plain.modules():
        if isinstance(m, torch.nn.BatchNorm2d): torch.nn.init.normal_(m.weight, 1, .2), torch.nn.init.normal_(m.bias, 0, .2)
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        want = plain.eval()(x)
        net = adapt(plain, Relation(signed_graph()))
        for c in range(4):
            with net.relation.asking(c): torch.testing.assert_close(net(x), want, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def lively(backbone='resnet18', new=(), seed=0, **kw):
    torch.manual_seed(seed)
    net = RENetwork(Relation(signed_graph(), new=new), resnet_parts(backbone, .125, .5, 8), **kw)
    for m in adaptive_layers(net):
        if m.affine: torch.nn.init.normal_(m.weight, .5, .7), torch.nn.init.normal_(m.bias, 0, .2)           # some negative: the pooling must notice
        m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    torch.nn.init.normal_(net.head.weight, std=.2)
    return net.eval()


@pytest.mark.parametrize('kw', [
    dict(), dict(outputs='levels', head='own'), dict(new=['AU4'], head='own'), dict(backbone='resnet50', statistics='shared'), dict(affine=False, outputs='softmax'),
    dict(adaptive_from=3), dict(adaptive_from=4, new=['AU4'], outputs='levels')])
def test_one_pass_equals_the_loop(kw):
    net, x = lively(**kw), torch.rand(5, 3, 45, 45)
    want = au_by_au(net, x)
    for settings in (dict(), dict(memory_mb=1e-6), dict(memory_mb=.4), dict(channels_last=False)):
        torch.testing.assert_close(OnePass(net, **settings)(x), want, rtol=1e-5, atol=1e-5)
    with torch.no_grad(): torch.testing.assert_close(net(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_one_pass_on_a_gpu_and_as_a_cuda_graph():
    net, x = lively().cuda(), torch.rand(4, 3, 48, 48, device='cuda')
    graph = OnePass(net, cuda_graph=True)
    for images in (x, x.flip(0), x[:2]): torch.testing.assert_close(graph(images), au_by_au(net, images), rtol=1e-3, atol=1e-3)


def test_all_aus_together_have_the_gradient_of_the_single_losses():
    net, x, y = lively().train(), torch.rand(6, 3, 32, 32), torch.randint(2, (6, 4)).float()
    def gradient(losses):
        net.zero_grad()
        for loss in losses: loss.backward()
        return [p.grad.clone() for p in net.parameters()]
    together = gradient([4 * network_loss(net(x), y)])
    apart = gradient([network_loss(net(x, c), y[:, c]) for c in range(4)])
    for a, b in zip(together, apart): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-6)


def test_draw_au_is_uniform_over_coded_aus():
    labels = torch.tensor([[1., float('nan'), 0., 0.]])
    torch.manual_seed(0)
    counts = np.bincount([draw_au(labels, range(4)) for _ in range(3000)], minlength=4)
    assert counts[1] == 0 and (abs(counts[[0, 2, 3]] - 1000) < 120).all()


def quick(**kw):
    return paper_trainer(**{**dict(epochs=3, batch_size=16, lr=.01, selection='last', progress=False, device='cpu', threads=1), **kw})


SMALL = dict(width=.125, depth=.5, stride=4)


@pytest.mark.parametrize('kind,kw', [
    (RENet, {}), (RENet, dict(strategy='all_aus')), (RENet, dict(strategy='all_aus', adaptive_from=3)),
    (RENet, dict(graph='learnable', head='own')), (RENet, dict(affine=False)), (ResNetBaseline, {})])
def test_estimators_learn_and_come_back_from_disk(kind, kw, tmp_path):
    faces = blob_faces(subjects=4, frames=20)
    train, test = faces.fold(0)
    model = kind(**SMALL, **kw, trainer=quick(epochs=8, selection='inner')).fit(train)
    assert model.history_.loss.iloc[-2:].mean() < model.history_.loss.iloc[0]
    scores = model.predict_scores(test)
    model.save(tmp_path / 'm')
    pd.testing.assert_frame_equal(kind.load(tmp_path / 'm').predict_scores(test), scores)


def test_a_fit_killed_and_resumed_is_the_fit_left_alone(tmp_path, monkeypatch):
    train = blob_faces(subjects=3, frames=16)
    trainer = quick(checkpoint_seconds=0)
    want = RENet(**SMALL, trainer=trainer).fit(train).predict_scores(train)
    calls, loss = iter(range(5)), RENet.loss
    def broken(self, module, batch):
        if next(calls, None) is None: raise KeyboardInterrupt
        return loss(self, module, batch)
    monkeypatch.setattr(RENet, 'loss', broken)
    with pytest.raises(KeyboardInterrupt): RENet(**SMALL, trainer=trainer).fit(train, workdir=tmp_path)
    monkeypatch.setattr(RENet, 'loss', loss)
    pd.testing.assert_frame_equal(RENet(**SMALL, trainer=trainer).fit(train, workdir=tmp_path).predict_scores(train), want)


def test_the_graph_is_the_training_folds():
    faces = blob_faces(subjects=4, frames=20)
    train, _ = faces.fold(0)
    model = RENet(**SMALL, duplicate=(4,), trainer=quick(epochs=1)).fit(train)
    want = mixing_weights(torch.tensor(label_graph(train).to_numpy()))
    np.testing.assert_allclose(model.module_.relation.mix().numpy(), want, atol=1e-6)
    assert not np.allclose(want, mixing_weights(torch.tensor(label_graph(faces).to_numpy())))


def test_labels_of_a_new_au_never_reach_the_trained_ones():
    train = blob_faces(subjects=4, frames=20)
    flipped = FaceSet(train.frames.assign(AU12=1 - train.frames['AU12']), train.crops, train.landmarks, train.card)
    a, b = (RENet(**SMALL, new_aus=(12,), trainer=quick(selection='inner', inner_fraction=.3)).fit(f) for f in (train, flipped))
    assert a.predict_scores(train)['AU4'].equals(b.predict_scores(train)['AU4']) and a.history_['selection_f1'].equals(b.history_['selection_f1'])
    assert np.isfinite(a.predict_scores(train)['AU12']).all()


def test_duplicates_are_exact_and_stay_with_their_subject():
    faces = blob_faces(subjects=3, frames=30)
    twice = duplicate_frames(faces, (4, 12), 'each')
    assert len(twice) == len(faces) + (faces.labels() == 1).sum()
    for subject in faces.subjects:
        mine = twice[(twice.frames['subject'] == subject).to_numpy()]
        assert set(map(bytes, np.asarray(mine.crops))) == set(map(bytes, np.asarray(faces[(faces.frames['subject'] == subject).to_numpy()].crops)))
    assert np.isnan(blank_labels(faces, (4,)).labels()[:, 0]).all()


def test_a_random_crop_is_a_window_of_its_image():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    out = crop_images(images, .75, random=True)
    assert out.shape == (6, 3, 9, 9) and out.is_contiguous(memory_format=torch.channels_last)
    for image, window in zip(images, out): assert any(torch.equal(image[:, y:y + 9, x:x + 9], window) for y in range(4) for x in range(4))


def test_cells_of_the_intensity_tables_average_to_what_is_printed():
    off = []
    for table in (4, 5):
        for row, cells in printed('re_net', table).groupby('row', sort=False):
            values = cells.set_index('item')['value'].astype(float)
            if abs(values.drop('Avg').mean() - values['Avg']) > .0101: off.append((table, row))
    assert off == [(4, 'MAE CCNN-IT')]                # noted among the remarks


def test_scale_one_and_bias_zero_is_the_plain_network_in_training_too_and_as_cheap():
    torch.manual_seed(0)
    net = RENetwork(Relation(signed_graph()), resnet_parts('resnet18', .125, .5, 8), affine=False, statistics='shared', head='own')
    plain = PlainNetwork(4, resnet_parts('resnet18', .125, .5, 8))
    for m in plain.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.weight.requires_grad_(False), m.bias.requires_grad_(False)         # they are 1 and 0
    plain.backbone.load_state_dict({k: v.squeeze(0) if 'running' in k else v for k, v in net.backbone.state_dict().items()}, strict=False)
    with torch.no_grad(): plain.head.weight.copy_(net.head.weight[:, 0]), plain.head.bias.copy_(net.head.bias[:, 0])
    net, plain, rows = net.double(), plain.double(), []
    for m in net.modules():
        if isinstance(m, torch.nn.Conv2d): m.register_forward_hook(lambda m, _, y: rows.append(len(y)))
    images, labels = torch.rand(6, 3, 40, 40, dtype=torch.float64), torch.randint(2, (6, 4)).double()
    losses = [network_loss(m(images), labels) for m in (net, plain)]
    for loss in losses: loss.backward()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(net.backbone.conv1.weight.grad, plain.backbone.conv1.weight.grad)
    torch.testing.assert_close(net.backbone.bn1.running_var[0], plain.backbone.bn1.running_var)
    assert set(rows) == {6}                           # every convolution saw each image once, not once an AU


def holed(seed=0, people=9, frames=25):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(people, 1, 3)) + rng.normal(size=(people, frames, 3)) > 0).astype(float).reshape(-1, 3)
    values[rng.random(values.shape) < .2] = np.nan
    keys = {'subject': np.repeat([f'W{i:03d}' for i in range(people)], frames), 'video': 'V1', 'frame': np.tile(range(frames), people)}
    return pd.DataFrame(keys).assign(AU1=values[:, 0], AU6=values[:, 1], AU12=values[:, 2], AU24=0.)


def test_correlations_of_drawn_people_are_those_of_their_frames():
    frames, names = holed(), ['AU1', 'AU6', 'AU12', 'AU24']
    graph, draws = drawn_pcc(frames, 5, seed=3)
    times = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), 5)
    groups = [g[names].to_numpy() for _, g in frames.groupby('subject')]
    for found, values in [(graph.to_numpy(), frames[names].to_numpy()), *((d, np.concatenate([g for g, t in zip(groups, ts) for _ in range(t)])) for d, ts in zip(draws, times))]:
        for i, j in itertools.combinations(range(3), 2):
            both = ~np.isnan(values[:, [i, j]]).any(1)
            assert found[i, j] == pytest.approx(np.corrcoef(values[both][:, [i, j]].T)[0, 1], abs=1e-9)
        assert (found[3] == [0, 0, 0, 1]).all()


def test_a_probe_cannot_use_who_somebody_is():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(10), 40)
    labels = (rng.random(400) < np.where(people % 2, .9, .1)).astype(int)
    auc, draws = drawn_auc(labels, [probe_scores(np.eye(10)[people], labels, people), labels + rng.normal(size=400)], people, 100)
    assert auc[0] < .65 < auc[1] and (draws[:, 1] > draws[:, 0]).mean() > .9
    assert np.isnan(probe_scores(np.eye(10)[people], np.ones(400, int), people)).all()


class MadeRuns:
    """What an analysis sees: score tables by row."""
    n_boot = 200
    def __init__(self, right, truth):
        lots = np.random.default_rng(1).random((len(truth), 3))       # the same for all rows: who is right more often is right wherever the other is
        def table(share): return truth.assign(**{c: np.where(lots[:, k] < share, truth[c], 1 - truth[c]) for k, c in enumerate(truth.columns[3:])})
        self.runs = {row: type('Row', (), dict(truth=truth, scores=table(share), protocol=type('P', (), dict(score_threshold=.5)))) for row, share in right.items()}
    def scores(self, row): return self.runs[row]


@pytest.mark.parametrize('shuffled,words', [(.7, 'pcc − shuffled: better where as coded'), (.9, 'pcc − shuffled: no difference shown in any world')])
def test_the_sweep_tells_a_true_graph_from_any_graph(shuffled, words):
    truth = holed(people=30)[['subject', 'video', 'frame', 'AU1', 'AU6', 'AU12']].fillna(0)
    right = {f'{g}, {w}': .7 for g in ('pcc', 'shuffled', 'identity') for w in ('independent', 'as coded')} | {'pcc, as coded': .9, 'shuffled, as coded': shuffled}
    table, _, note = correlation_sweep(MadeRuns(right, truth))
    assert words in note and 'pcc − identity: better where as coded' in note
    assert set(table['row']) == {'independent', 'as coded', 'as coded − independent'}


RE_NET_STUDIES = [n for n in study_names() if n.startswith('re_net')]


def test_every_table_and_figure_of_the_paper_has_a_study():
    found = {(s.table, s.figure) for s in map(load_study, RE_NET_STUDIES)}
    assert found >= {(k, None) for k in range(1, 9)} | {(None, 2), (None, 3)}


@pytest.mark.parametrize('profile', ['smoke', 'quick', 'full'])
def test_the_studies_compare_like_with_like(profile):
    profile, schedules, different = load_profile(profile), {False: set(), True: set()}, set()
    for study in map(load_study, RE_NET_STUDIES):
        for row in (r for r in study.rows if r.estimator):
            params = full_params(make_estimator(row.estimator, {**sizes_for(profile, row), **row.params}))
            trunk = {k: v for k, v in params.items() if k.startswith('trainer') or k in ('backbone', 'width', 'depth', 'stride', 'crop', 'weights')}
            schedules['duplicate' in row.params].add(json.dumps(trunk))
            different.add(json.dumps([row.estimator, params, study.dataset, {**study.data, **row.data}, study.protocol], sort_keys=True))
            if row.params.get('graph') == 'learnable': assert params['denominator'] == 'absolute'        # a learned weight may change its sign
    (plain,), (copies,) = schedules.values()          # both networks, all tables: one trunk, one number of epochs, one schedule
    plain, copies = json.loads(plain), json.loads(copies)
    assert {k for k in plain if plain[k] != copies[k]} <= {'trainer__epochs', 'trainer__warmup_epochs'}     # with copies an epoch is longer
    assert len(different) <= 27                       # trainings a fold: tables share them


@pytest.mark.parametrize('profile', ['quick', 'full'])
def test_duplication_buys_no_steps(profile):
    profile, sizes, world = load_profile(profile), load_profile('quick').world['bp4d'], FaceWorld('bp4d')
    frames = world.labels(sizes)
    faces = FaceSet(frames, np.zeros((len(frames), 8, 8, 3), np.uint8), np.zeros((len(frames), 68, 2), np.float32), world_card(world.preset, subject_names(sizes['subjects'])))
    for fold in range(3):
        steps = {}
        for row in load_study('re_net_table8').rows:
            estimator = make_estimator(row.estimator, {**sizes_for(profile, row), **row.params})
            trainer = estimator.trainer_in_use()
            shown = len(estimator._training_set(faces.fold(fold)[0]).split_subjects(trainer.inner_fraction, trainer.seed)[0])
            steps[row.name] = [epochs * shown / trainer.batch_size for epochs in (trainer.epochs, trainer.warmup_epochs)]
        for name in ('ResNet18', 'Ours'): assert steps[f'{name} + DA'] == pytest.approx(steps[f'{name} w/o DA'], rel=.06)        # whole epochs, three folds


def test_with_scale_1_and_bias_0_a_step_is_that_of_the_plain_network():
    row, = (r for r in load_study('re_net_table7').rows if r.name == 'RE-Net, scale 1, bias 0')
    faces, small = blob_faces(), dict(width=.125, depth=.5, stride=4, crop=1.)
    models = [make_estimator(name, {**small, **params}) for name, params in (('re_net', row.params), ('resnet_aus', {}))]
    ours, plain = (m.build(faces).double() for m in models)
    batch = BatchSource(faces).batch(np.arange(16))
    batch.image, batch.labels = batch.image.double(), batch.labels.double()
    values = plain.state_dict()
    values |= {k: values[k].reshape(v.shape) for k, v in ours.state_dict().items() if k.startswith('head')}
    ours.load_state_dict({k: v for k, v in values.items() if k in ours.state_dict() and 'running' not in k}, strict=False)
    losses = [m.loss(net, batch) for m, net in zip(models, (ours, plain))]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-9)
    grads = [torch.autograd.grad(loss, net.backbone.conv1.weight)[0] for loss, net in zip(losses, (ours, plain))]
    assert grads[0].abs().max() > 0; torch.testing.assert_close(*grads, rtol=0, atol=1e-9)


def test_the_sweep_of_the_quick_profile_shares_what_the_tables_train():
    profile = load_profile('quick')
    def runs(study, name):
        study = load_study(study)
        row, = (r for r in study.rows if r.name == name)
        return {r.id for r in row_runs(study, row, profile, 'world')}
    assert runs('re_net_correlation', 'pcc, as coded') == runs('re_net_table1', 'RE-Net')
    assert runs('re_net_correlation', 'learnable, as coded') == runs('re_net_table7', 'RE-Net, learned relation')
    rows = {r.name for r in load_study('re_net_correlation').rows}
    assert rows - {'pcc, as coded', 'learnable, as coded'} == {'pcc, independent', 'shuffled, independent', 'shuffled, as coded', 'identity, as coded'}


@pytest.mark.parametrize('name', ['beats-baseline', 'rare-aus-gain', 'rare-aus-gain-more', 'intensity-icc', 'intensity-mae', 'learned-relation-helps'])
def test_a_lead_over_a_baseline_that_still_climbs_is_said_to_be_one(name):
    climb = re.search(r'baseline, 12, 18 and 24 epochs: ([\d.]+), ([\d.]+), ([\d.]+);', (project_root() / 'data_manifests/profiles/quick/re_net.yaml').read_text())
    a, b, c = map(float, climb.groups())
    assert c - b > b - a and 'who learns faster' in claimed(name).note


def test_the_full_profile_shows_the_networks_what_the_paper_shows_them():
    profile, study = load_profile('full'), load_study('re_net_table1')
    assert [row.params.get('crop', RENet().crop) * profile.world['crop'] for row in study.rows if row.estimator] == [224, 224]       # Sec. 4.3: 224 of 256 px


def test_who_chose_the_sizes_of_the_quick_profile_is_tested_by_two_folds():
    world = FaceWorld('bp4d')
    frames = world.labels({'subjects': 41, 'videos': 1, 'frames': 2, 'stride': 1})
    faces = FaceSet(frames, np.zeros((len(frames), 8, 8, 3), np.uint8), np.zeros((len(frames), 68, 2), np.float32), world_card(world.preset, subject_names(41)))
    chose = set(faces.fold(0)[0].split_subjects(1 / 3, 0)[1].subjects)
    second, third = (chose & set(faces.fold(k)[1].subjects) for k in (1, 2))
    assert len(chose) == 9 and second and third and second | third == chose and len(faces.subjects) == 41           # as the page and the profile say


# --- what is claimed -----------------------------------------------------------------------------------------------------------------

def claimed(name):
    claim, = (c for c in load_claims(['re_net']) if c.name == name)
    return claim


def test_printed_effects_are_those_of_the_tables():
    cells = printed('re_net', 1).set_index(['row', 'item'])['value']
    gain = {au: float(cells['Ours', au]) - float(cells['ResNet18', au]) for au in (f'AU{a}' for a in (1, 2, 6, 7, 10, 12, 14, 15, 23, 24))}
    test = claimed('rare-aus-gain-more').tests[0]
    assert test.published == pytest.approx(np.mean([gain[i] for i in test.item]) - np.mean([gain[i] for i in test.more_than['item']]), abs=.005)
    average = printed('re_net', 7).set_index('row')['value'].astype(float)
    assert claimed('learned-relation-is-worse').tests[0].published == pytest.approx(average['Ours+ learnable'] - average['Ours'], abs=.05)
    assert claimed('scale-and-bias-matter').tests[0].published == pytest.approx(average['Ours'] - average['ResNet18'], abs=.05)
    for name in ('duplication-is-not-needed', 'more-robust-to-imbalance'):                 # "0.1% difference", without its sign
        assert claimed(name).tests[0].published is None and '0.1' in claimed(name).note


def test_the_learned_relation_differs_from_the_fixed_one_in_the_graph_alone():
    test = claimed('learned-relation-is-worse').tests[0]
    learned, fixed = (full_params(make_estimator(r.estimator, r.params)) for name in (test.row, test.minus) for r in load_study(test.study).rows if r.name == name)
    assert {k for k in learned if learned[k] != fixed[k]} == {'graph'}


@pytest.mark.parametrize('name', ['aus-go-together', 'aus-exclude-each-other'])
def test_what_a_note_calls_true_by_construction_is_so_in_every_world(name):
    claim = claimed(name)
    for test in claim.tests:
        preset = load_preset(load_study(test.study).dataset)
        r = target_correlation(preset)[tuple(preset.aus.index(int(c[2:])) for c in test.cell)]
        assert f'{(r > 0) == (test.direction == "higher")} by construction'.lower() in claim.note


@pytest.mark.parametrize('dataset,aus', [('bp4d', (6, 10, 12, 14, 17)), ('disfa', (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26))])
def test_intensities_are_those_behind_the_other_labels(dataset, aus):
    profile = Profile('tiny', '', world={'crop': 16, 'default': {'subjects': 3, 'videos': 1, 'frames': 40, 'stride': 30}})
    plain, graded = (data_spec(dataset, profile, labels=labels) for labels in ('', 'intensity'))
    assert {**graded, 'labels': ''} == {**plain, 'labels': ''} and 'labels' not in plain
    frames = world_intensities(graded, graded['sizes'])
    other = FaceWorld(dataset).labels(plain['sizes'])
    both = [f'AU{a}' for a in aus if f'AU{a}' in other]
    assert tuple(frames.columns[3:]) == tuple(f'AU{a}' for a in aus) and frames[both].to_numpy().max() > 1
    np.testing.assert_array_equal(frames[both] >= 1, other[both] >= 1)          # occurrence of BP4D is coded from A on
    for table in ('icc', 'mae'):
        study = load_study(f're_net_table{4 if dataset == "bp4d" else 5}_{table}')
        assert study.data == {'labels': 'intensity'} and tuple(study.protocol['aus']) == aus


class Middle:
    "Finds a face in the middle of every picture."
    id = 'middle/v1'
    def detect(self, image, key=None):
        side = min(image.shape[:2]) / 2
        corner = (np.array(image.shape[1::-1]) - side) / 2
        return [Detection(np.array([*corner[::-1], *(corner + side)[::-1]]), schematic_face(side) + corner, 1.)]


def test_intensities_of_a_tree_are_prepared_beside_its_occurrence(tmp_path, monkeypatch):
    for name, folder in (('XDG_CONFIG_HOME', 'config'), ('AU_STUDY_CACHE', 'cache')): monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr('au_study.datasets.prepare.prepare', partial(prepare, detector=Middle(), progress=False))
    write_layout('bp4d', 'bp4d', tmp_path / 'tree', subjects=3, videos=1, frames=3, size=96)
    add_set('bp4d', tmp_path / 'tree')
    profile, made = Profile('tiny', '', world={'crop': 32}), {}
    for labels in ('', 'intensity'):
        prepare_known(data_spec('bp4d', profile, 'bp4d', labels=labels), jobs=0)
        spec = data_spec('bp4d', profile, 'bp4d', labels=labels)
        made[labels] = open_data(spec, 'bp4d')
        assert data_folds(spec, 'bp4d') == 3 and list(full_labels(spec, made[labels]).frames.columns[3:]) == made[labels].columns
    assert made['intensity'].aus == (6, 10, 12, 14, 17) and made['intensity'].card.kind == 'intensity'
    for kind, faces in zip(('occurrence', 'intensity'), made.values()):
        written = read_frames(tmp_path / 'tree' / f'world_{kind}.parquet')
        pd.testing.assert_frame_equal(faces.frames, faces.frames[list(KEYS)].merge(written[[*KEYS, *faces.columns]], on=list(KEYS)), check_dtype=False)
    np.testing.assert_array_equal(np.asarray(made[''].crops), np.asarray(made['intensity'].crops))


def test_on_real_data_the_sweep_is_left_out_and_the_tables_stay():
    sweep, table = load_study('re_net_correlation'), load_study('re_net_table4_icc')
    assert what_fits(sweep, 'world') == (sweep, '') and what_fits(table, '/faces') == (table, '')
    left, said = what_fits(sweep, '/faces')
    assert left is None and said.startswith('re_net_correlation is left out: correlation_strength of the face world')
