"""Pairwise: Eq. 1 and 2 and the features against double-precision loops, pairs that never cross videos, one pass a frame, and the analyses on a store made for them."""
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial import procrustes

from au_study.faces.alignment import ProcrustesCrop, similarity, transform_points
from au_study.faces.faceset import CropView, FaceSet
from au_study.faces.mixture import mix
from au_study.pairwise import analyses, estimator
from au_study.pairwise.estimator import LivePairwise, Pairwise, PseudoIntensity, SingleImage, paper_trainer
from au_study.pairwise.hinge import group_hinge_loss, pairwise_hinge_loss
from au_study.pairwise.mapping import MAPPINGS, MappingNet, learn_mapping, mapped, mapping_features, n_features
from au_study.pairwise.pairs import grades, group_faces, pack_pairs, ranking_label, sample_pairs
from au_study.pairwise.variation_range import EDGES, RangeSketch, frequency_features, percentile_features, variation_range, video_rank
from au_study.scoring import f1_table
from au_study.study.audit import audit
from au_study.study.manifests import load_profile, load_study, study_names
from au_study.study.published import printed
from au_study.study.runs import make_run, parent_of
from au_study.training import AUEstimator
from au_study.training.batches import blob_faces

SMALL = dict(width=.125, depth=.3, pools=2, grid=2, batch_norm=True, dropout=0.)
QUICK = dict(epochs=2, batch_size=16, lr=1e-3, optimizer='adam', weight_decay=0., progress=False, augment=None)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def coded(seed, kind='intensity', holes=.2, subjects=4, videos=3, longest=14):
    """Videos of different lengths, labels with holes and ties."""
    rng = np.random.default_rng(seed)
    keys = [(f'S{s}', f'v{v}', f) for s in range(subjects) for v in range(videos) for f in range(rng.integers(1, longest))]
    frames = pd.DataFrame(keys, columns=['subject', 'video', 'frame'])
    for a in (1, 4, 12): frames[f'AU{a}'] = np.where(rng.random(len(keys)) < holes, np.nan, rng.integers(0, 6 if kind == 'intensity' else 2, len(keys)).astype(float))
    card = replace(blob_faces().card, name=kind, kind=kind, aus=(1, 4, 12), folds=())
    return FaceSet(frames, rng.integers(0, 255, (len(keys), 8, 8, 3), np.uint8), rng.random((len(keys), 68, 2)).astype(np.float32) * 7, card)


@pytest.fixture(scope='module')
def model():
    return Pairwise(PseudoIntensity(**SMALL, group=4), hidden=16, map_epochs=4, map_dropout=0., trainer=paper_trainer(**QUICK)).fit(blob_faces(subjects=8, frames=16, seed=1))


@pytest.fixture(scope='module')
def unseen(): return blob_faces(subjects=3, frames=12, seed=5)


# --- pairs ---

@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('balance', [True, False])
def test_pairs_keep_to_their_video_and_carry_no_tie(seed, balance):
    faces = mix({'graded': coded(seed), 'plain': coded(seed + 50, 'occurrence')})
    pairs = sample_pairs(faces, 300, seed, balance)
    keys, g = faces.frames[['subject', 'video']].to_numpy(), grades(faces)
    column = pairs['au'].map({a: k for k, a in enumerate(faces.aus)}).to_numpy()
    assert len(pairs) == 300 and (keys[pairs['i']] == keys[pairs['j']]).all() and (pairs['i'] != pairs['j']).all()
    low, high = g[pairs['i'], column], g[pairs['j'], column]
    assert np.isfinite(low).all() and np.isfinite(high).all() and (low != high).all()
    assert ((low < high) == (pairs['r'] == 1)).all() and np.allclose(abs(high - low), pairs['gap'])
    groups = pack_pairs(pairs, 6, seed)
    assert (keys[groups] == keys[groups[:, :1]]).all() and set(groups.ravel()) == set(pairs[['i', 'j']].to_numpy().ravel())


def test_balance_over_aus_and_gaps():
    faces = coded(0, holes=0., subjects=10, longest=40)
    rare = faces.frames.assign(AU1=np.where(np.arange(len(faces)) % 12 == 0, 5., 0.))
    faces = FaceSet(rare, faces.crops, faces.landmarks, faces.card)
    fair, free = (sample_pairs(faces, 6000, 0, b) for b in (True, False))
    assert abs(fair['au'].value_counts(normalize=True) - 1 / 3).max() < .03
    assert free['au'].value_counts(normalize=True)[1] < .2
    gaps = fair[fair['au'] == 4]['gap'].value_counts(normalize=True)
    assert abs(gaps - 1 / 5).max() < .04 and free[free['au'] == 4]['gap'].value_counts(normalize=True)[5] < .1


def test_scales_share_an_au_by_their_videos():
    """Five gaps of intensities don't crowd out the one gap of occurrence; as many pairs come from a set as videos."""
    def moving(kind, subjects):
        faces = coded(7, kind, holes=0., subjects=subjects, longest=2)
        rows = np.tile(np.arange(len(faces)), 6)                                          # six frames a video, so that every AU moves in each
        frames = faces.frames.iloc[rows].assign(frame=np.arange(len(rows))).sort_values(['subject', 'video', 'frame'], kind='stable')
        for a in faces.columns: frames[a] = np.tile(np.arange(6.) if kind == 'intensity' else np.arange(6.) % 2, len(faces))
        return FaceSet(frames.reset_index(drop=True), np.zeros((len(rows), 8, 8, 3), np.uint8), np.zeros((len(rows), 68, 2), np.float32), faces.card)
    pairs = sample_pairs(mix({'graded': moving('intensity', 2), 'plain': moving('occurrence', 6)}), 6000)
    plain = pairs['video'] >= 6                                                           # 6 videos and 18
    assert abs(plain.groupby(pairs['au']).mean() - 3 / 4).max() < .05
    assert abs(pairs[~plain]['gap'].value_counts(normalize=True) - 1 / 5).max() < .05


def test_ranking_label_is_eq_1():
    rng = np.random.default_rng(0)
    y_i, y_j = (np.where(rng.random((60, 4)) < .2, np.nan, rng.integers(0, 6, (60, 4))) for _ in range(2))
    r = ranking_label(y_i, y_j)
    for a, b, got in zip(y_i.ravel(), y_j.ravel(), r.ravel()):
        want = 1 if a < b else 0 if a > b else None
        assert np.isnan(got) if want is None else got == want


def test_scales_of_intensity_never_meet():
    graded, plain = coded(3), coded(4, 'occurrence')
    g = grades(mix({'graded': graded, 'plain': plain}))
    assert np.allclose(g[:len(graded)], graded.intensities(), equal_nan=True) and np.allclose(g[len(graded):], plain.labels(), equal_nan=True)


# --- loss ---

def eq_2(y_i, y_j, r, t=1.):
    total = 0.
    for a, b, label in zip(y_i.ravel(), y_j.ravel(), r.ravel()):
        if not np.isnan(label): total += max(0., t - (1 - 2 * label) * (a - b))
    return total


@pytest.mark.parametrize('margin', [1., .3])
def test_hinge_is_eq_2_with_its_gradient(margin):
    rng = np.random.default_rng(1)
    y_i, y_j, r = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)), rng.choice([0., 1., np.nan], (40, 5))
    a, b = (torch.tensor(y, requires_grad=True) for y in (y_i, y_j))
    loss = pairwise_hinge_loss(a, b, torch.tensor(r), margin=margin)
    assert abs(loss.item() - eq_2(y_i, y_j, r, margin)) < 1e-12
    loss.backward()
    for _ in range(20):
        m, k = rng.integers(40), rng.integers(5)
        step = np.zeros_like(y_i); step[m, k] = 1e-6
        slope = (eq_2(y_i + step, y_j, r, margin) - eq_2(y_i - step, y_j, r, margin)) / 2e-6
        assert abs(a.grad[m, k].item() - slope) < 1e-6 and abs(b.grad[m, k].item() + slope) < 1e-6


def test_group_loss_is_the_pair_loss_of_all_its_pairs():
    rng = np.random.default_rng(2)
    y, g = rng.normal(size=(3, 5, 4)), rng.choice([0., 2., 4., np.nan], (3, 5, 4))
    i, j = np.triu_indices(5, 1)
    r = ranking_label(g[:, i], g[:, j])
    means = [eq_2(y[:, i][..., k], y[:, j][..., k], r[..., k]) / np.isfinite(r[..., k]).sum() for k in range(4)]
    assert abs(group_hinge_loss(torch.tensor(y), torch.tensor(g)).item() - np.mean(means)) < 1e-6
    whole = eq_2(y[:, i], y[:, j], r) / np.isfinite(r).sum()
    assert abs(group_hinge_loss(torch.tensor(y), torch.tensor(g), by_au=False).item() - whole) < 1e-6


def test_the_loss_cannot_see_a_persons_offset():
    y, g = torch.randn(4, 6, 3, dtype=torch.float64), torch.randint(0, 4, (4, 6, 3)).double()
    assert torch.allclose(group_hinge_loss(y, g), group_hinge_loss(y + 100 * torch.randn(4, 1, 3), g), atol=1e-4)


# --- features ---

@pytest.mark.parametrize('lengths', [(1,), (1, 1, 2), (50, 1, 3, 7)])
def test_features_against_numpy(lengths):
    rng = np.random.default_rng(len(lengths))
    video = rng.permutation(np.repeat(np.arange(len(lengths)), lengths))
    values = rng.normal(size=(len(video), 4)).round(1)                                   # with ties, and values on borders
    found = variation_range(values, video)
    for v in range(len(lengths)):
        own = values[video == v]
        assert np.allclose(found[v, :, :11], np.percentile(own, range(0, 101, 10), axis=0).T, atol=1e-12)
        for k in range(4):
            shares = [np.mean(own[:, k] < EDGES[0]), *(np.mean((own[:, k] >= a) & (own[:, k] < b)) for a, b in zip(EDGES, EDGES[1:])), np.mean(own[:, k] >= EDGES[-1])]
            assert np.allclose(found[v, k, 11:], shares, atol=1e-12)
    assert np.isfinite(found).all() and np.allclose(found[..., 11:].sum(-1), 1)


def test_sketch_is_exact_to_a_bin_in_constant_memory():
    rng = np.random.default_rng(0)
    values, sketch = rng.standard_t(3, (4000, 2)), RangeSketch(2)
    size = sketch.nbytes
    for n in range(4000):
        sketch.update(values[n])
        if n + 1 in (1, 2, 17, 500, 4000):
            zero = np.zeros(n + 1, int)
            exact = percentile_features(values[:n + 1], zero)[0]
            inside = np.abs(exact) < 8
            assert np.abs(sketch.percentiles() - exact)[inside].max() <= 1 / 64 + 1e-9
            assert np.allclose(sketch.frequencies(), frequency_features(values[:n + 1], zero)[0])
            assert np.abs(sketch.rank(values[n]) - video_rank(values[:n + 1], zero)[-1:]).max() <= .5 * (sketch.counts.max() / (n + 1)) + 1e-9
    assert sketch.nbytes == size


def test_procrustes_against_scipy():
    rng = np.random.default_rng(0)
    mean = np.asarray(ProcrustesCrop.fit(blob_faces().landmarks[:4], 64).mean)
    for _ in range(5):
        turn = rng.uniform(-1, 1)
        face = (mean + .05 * rng.normal(size=mean.shape)) @ (rng.uniform(5, 50) * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])) + rng.normal(0, 30, 2)
        ours = transform_points(similarity(face, mean), face)
        disparity = procrustes(mean, face)[2]
        assert abs(((ours - mean) ** 2).sum() / ((mean - mean.mean(0)) ** 2).sum() - disparity) < 1e-9


# --- estimators ---

def test_a_training_pass_looks_at_every_frame_of_a_group_once():
    faces = blob_faces(subjects=4, frames=12, seed=3)
    groups = group_faces(faces, passes=2., size=6)
    assert groups.shape == (2 * len(faces) / 6, 6)
    seen, pseudo = [], PseudoIntensity(**SMALL, group=6, passes=2., trainer=paper_trainer(**{**QUICK, 'epochs': 1, 'selection': 'last'}))
    build = pseudo.build
    def counted(f):
        module = build(f)
        module.net.vgg.register_forward_pre_hook(lambda m, x: seen.append(len(x[0])) if m.training else None)
        return module
    pseudo.build = counted
    pseudo.fit(faces)
    assert sum(seen) == len(groups) * 6


def test_a_killed_training_draws_the_pairs_it_would_have_drawn(tmp_path, monkeypatch):
    """Every epoch has pairs of its own; who goes on in the third draws those of the third."""
    faces = blob_faces(subjects=4, frames=12, seed=3)
    drawn, draw, stop = [], estimator._groups_of, [None]
    def watched(*args):
        if args[-1] == stop[0]: raise KeyboardInterrupt
        drawn.append((args[-1], draw(*args).fingerprint))
        return draw(*args)
    monkeypatch.setattr(estimator, '_groups_of', watched)
    def fit(until, workdir=None):
        drawn.clear(); stop[0] = until
        pseudo = PseudoIntensity(**SMALL, trainer=paper_trainer(**{**QUICK, 'epochs': 3, 'selection': 'last', 'checkpoint_seconds': 0}))
        return pseudo.fit(faces, workdir=workdir).history_['loss'].tolist(), dict(drawn)
    whole, pairs = fit(None)
    assert len(whole) == 3 and len(set(pairs.values())) == 3
    with pytest.raises(KeyboardInterrupt): fit(2, tmp_path)
    losses, rest = fit(None, tmp_path)
    assert losses == whole and 1 not in rest and rest[2] == pairs[2]


def test_long_video_costs_one_pass_a_frame_and_no_memory(model):
    def video(n):
        few = blob_faces(subjects=1, frames=50)
        rows = np.arange(n) % 50
        frames = pd.DataFrame({'subject': 'S0', 'video': 'v', 'frame': np.arange(n), 'AU4': 0., 'AU12': 0.})
        return FaceSet(frames, CropView(np.asarray(few.crops), rows), np.broadcast_to(few.landmarks[0], (n, 68, 2)), few.card)

    def run(n):
        faces, seen = video(n), []
        hook = model.module_.look.net.vgg.register_forward_pre_hook(lambda m, x: seen.append(len(x[0])))
        tracemalloc.start()
        try: scores = model.predict_scores(faces)
        finally: hook.remove(); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
        assert len(scores) == n and sum(seen) == n
        return peak, max(seen)

    (short, batch), (long, same) = run(2_500), run(10_000)
    crops = 7_500 * 16 * 16 * 3
    assert batch == same and long - short < .5 * crops                                    # keys and scores grow; pixels do not pile up


def test_live_says_what_frames_so_far_say(model, unseen):
    offline = model.set_params(seen='so_far').predict_scores(unseen)
    live, found = LivePairwise(model), []
    for _, rows in unseen.frames.groupby(['subject', 'video'], sort=False).indices.items():
        live.start()
        found += [live(unseen.crops[r]).to_numpy() for r in rows]
    model.set_params(seen='video')
    assert np.allclose(found, offline[unseen.columns], atol=1e-4)
    assert not np.allclose(model.predict_scores(unseen)[unseen.columns], offline[unseen.columns], atol=1e-4)


@pytest.mark.parametrize('mapping', MAPPINGS)
def test_saved_model_says_the_same(model, unseen, tmp_path, mapping):
    model.set_params(mapping=mapping).save(tmp_path / 'm')
    pd.testing.assert_frame_equal(AUEstimator.load(tmp_path / 'm').predict_scores(unseen), model.predict_scores(unseen))
    model.set_params(mapping='variation_range')


def test_scores_do_not_depend_on_labels_or_on_other_videos(model, unseen):
    blank = FaceSet(unseen.frames.assign(AU4=np.nan, AU12=np.nan), unseen.crops, unseen.landmarks, unseen.card)
    pd.testing.assert_frame_equal(model.predict_scores(blank), model.predict_scores(unseen))
    pd.testing.assert_frame_equal(model.predict_scores(unseen[:12]), model.predict_scores(unseen).iloc[:12])
    assert not np.allclose(model.predict_scores(unseen[:6])[unseen.columns], model.predict_scores(unseen)[unseen.columns].iloc[:6], atol=1e-6)


def test_one_training_serves_all_mappings():
    protocol = load_protocol()
    data = {'source': 'world', 'dataset': 'bp4d', 'resolution': 1.0}
    run = make_run('au_study.pairwise.estimator:Pairwise', {'mapping': 'median', 'pseudo__width': .5}, data, protocol)
    assert parent_of(run) == make_run('au_study.pairwise.estimator:Pairwise', {'pseudo__width': .5}, data, protocol)
    other = make_run('au_study.pairwise.estimator:Pairwise', {'trial': 1, 'pseudo__width': .5}, data, protocol)
    assert parent_of(other) is None and other.id != parent_of(run).id


def load_protocol():
    from au_study.study.protocol import protocol_of
    return protocol_of(load_study('pairwise_table1').protocol)


def test_full_profile_is_the_papers():
    model = Pairwise().set_params(**load_profile('full').estimators['pairwise'])
    assert (model.subset, model.hidden, model.pseudo.group, model.pseudo.weights, model.mapping, model.seen) == (False, 4096, 2, 'imagenet', 'variation_range', 'video')


def test_trial_changes_every_draw_and_nothing_else():
    one, two = (SingleImage(**SMALL, trial=t, trainer=paper_trainer(**QUICK)) for t in (0, 1))
    a, b = one.trainer_in_use().get_params(), two.trainer_in_use().get_params()
    assert a.pop('seed') != b.pop('seed') and {k for k in a if a[k] != b[k] and k != 'augment'} == set()
    model = Pairwise(trial=2).set_params(trainer__epochs=3)
    assert model.trainer_in_use().seed == Pairwise(trial=2).trainer_in_use().seed and model.trainer_in_use().epochs == 3


@pytest.mark.parametrize('change,says', [(dict(mapping='mean'), 'mapping must be one of'), (dict(seen='all'), "seen must be one of"), (dict(pool='set'), 'pool must be one of')])
def test_wrong_parameters_are_named(change, says):
    with pytest.raises(ValueError, match=says): Pairwise(PseudoIntensity(**SMALL), trainer=paper_trainer(**QUICK), **change).fit(blob_faces())


def test_mappings_are_trained_where_step_1_was(model, monkeypatch):
    asked, learn = [], estimator.learn_mapping
    monkeypatch.setattr(estimator, 'learn_mapping', lambda *a: asked.append(str(a[-1])) or learn(*a))
    faces = blob_faces(subjects=4, frames=8)
    given = Pairwise()._for_mapping(faces, np.zeros((len(faces), 2)))
    monkeypatch.setattr(estimator, 'resolve_device', lambda device: {'auto': 'cpu', 'cuda:7': 'meta'}[device])
    brief = model.set_params(map_epochs=1)
    brief._learn(MappingNet(2, 1, 8), 'none', given, None, paper_trainer(**QUICK))
    with pytest.raises(RuntimeError, match='meta'): brief._learn(MappingNet(2, 1, 8), 'none', given, None, paper_trainer(**QUICK, device='cuda:7'))
    model.set_params(map_epochs=4)
    assert asked == ['cpu', 'meta']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_mappings_of_a_gpu_are_those_of_the_cpu():
    rng, video = np.random.default_rng(0), np.repeat(np.arange(6), 20)
    values = rng.normal(size=(120, 2))
    given, nets = (values, (values > .5).astype(np.float32), video), {}
    for device in ('cpu', 'cuda'):
        torch.manual_seed(0)
        nets[device] = MappingNet(2, n_features('variation_range'), 16, dropout=0.)
        learn_mapping(nets[device], 'variation_range', *given, held=given, epochs=3, device=device)
    x = mapping_features('variation_range', values, variation_range(values, video)[video], video_rank(values, video))
    assert np.allclose(mapped(nets['cuda'], x), mapped(nets['cpu'], x), atol=1e-3) and not np.ptp(mapped(nets['cpu'], x)) == 0
    assert not any(v.is_cuda for v in nets['cuda'].state_dict().values())
    assert np.allclose(mapped(nets['cuda'].cuda(), x), mapped(nets['cpu'], x), atol=1e-3)


def test_subject_pool_takes_all_videos_together():
    faces = coded(5, 'occurrence')
    assert len(np.unique(Pairwise(pool='subject')._codes(faces))) == 4 and len(np.unique(Pairwise()._codes(faces))) == len(faces.frames.groupby(['subject', 'video']))


@pytest.mark.parametrize('heads,weights', [('shared', (25 + 3) * 8 + 8 + 8 * 8 + 8 + 8 + 1), ('own', 3 * (25 * 8 + 8 + 8 * 8 + 8 + 8 + 1)), ('joint', 75 * 8 + 8 + 8 * 8 + 8 + 3 * 8 + 3)])
def test_mapping_heads_have_their_weights(heads, weights):
    assert sum(p.numel() for p in MappingNet(3, 25, hidden=8, heads=heads).parameters()) == weights


# --- tables ---

def test_printed_table():
    cells = printed('pairwise', 1)
    assert len(cells) == 6
    assert set(audit('pairwise')['check']) == {'fact'}       # words contradict each other; every number holds


@pytest.mark.parametrize('name', [n for n in study_names() if n.startswith('pairwise')])
def test_studies_hold_together(name):
    study = load_study(name)
    assert study.paper == 'pairwise' and study.protocol['selection'] == 'last'


class Store:
    """Two models on two worlds, without a results folder."""
    def read(self, run, what): return {'seed': 0}


def context(rows, tables, truth, **more):
    protocol = SimpleNamespace(score_threshold=.5, threshold=1)
    published = pd.DataFrame([(r['row'], r['item'], float(r['value'])) for _, r in printed('pairwise', 1).iterrows()], columns=['row', 'item', 'value'])
    return SimpleNamespace(runs={r: [r] for r in rows}, store=Store(), n_boot=50, threads=1, source='world', published=published, ids=lambda row: [row],
                           scores=lambda row: SimpleNamespace(truth=truth, scores=tables[row], protocol=protocol), **more)


def test_trial_table_names_the_bias():
    truth = blob_faces(subjects=6, frames=20).frames
    rng = np.random.default_rng(0)
    rows = [f'Pairwise {n}' for n in range(1, 6)]
    tables = {r: truth.assign(AU4=rng.random(len(truth)), AU12=rng.random(len(truth))) for r in rows}
    table, figure, note = analyses.trial_table(context(rows, tables, truth))
    score = table[table['item'] == 'score'].set_index('row')['measured']
    assert score['Pairwise, best of 5'] == score[rows].max() and abs(score['Pairwise, mean of 5'] - score[rows].mean()) < 1e-12
    assert 'selection bias' in note and (table['published'].dropna() == [.39, .95, .67]).all() and figure is not None


def test_inconsistency_and_comparability(model, unseen, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ['VGG-16, here', 'Pairwise, here']
    tables = {r: unseen.frames.assign(AU4=rng.random(len(unseen)), AU12=rng.random(len(unseen))) for r in rows}
    true = unseen.frames.assign(AU4=3 * unseen.frames['AU4'] + rng.random(len(unseen)) * .4, AU12=2 * unseen.frames['AU12'])
    monkeypatch.setattr(analyses, 'world_runs', lambda context, row: iter([(model if row.startswith('Pairwise') else Scorer(model), unseen, None, {'source': 'world'})]))
    monkeypatch.setattr(analyses, '_true', lambda spec: true)
    table, figure, note = analyses.inconsistency_table(context(rows, tables, unseen.frames))
    own = table.set_index('item')['measured']
    always = f1_table(unseen.frames, unseen.frames.assign(AU4=1., AU12=1.)).loc['Avg', 'f1']
    assert abs(own['always yes, F1 %'] - 100 * always) < 1e-9 and 0 < always < 1
    assert own['true intensity, one criterion, F1 %'] == 100 and figure is not None and 'in the world called here' in note
    assert abs(own['variation range minus single image, points'] - (own['variation range, F1 %'] - own['single image, F1 %'])) < 1e-9
    assert {f'variation range minus {analyses.TITLES[m]}, points' for m in MAPPINGS[1:]} <= set(own.index)
    assert not any('beyond' in i for i in own.index) and 0 <= own['AUs of 2 with variation range ahead of single image'] <= 2
    table, _, _ = analyses.comparability_table(context(rows, tables, unseen.frames))
    assert len(table) == 6 and table['measured'].between(-1, 1).all() and (table['low'] <= table['measured'] + 1e-9).all()


def test_each_seed_is_correlated_by_itself(unseen, monkeypatch):
    """Two models that are right within each person, with offsets of their own for everybody: together they would not be."""
    truth = unseen.frames.assign(AU4=np.arange(len(unseen)) % 12, AU12=np.arange(len(unseen)) % 12)
    outputs = iter([(truth[['AU4', 'AU12']].to_numpy() + shift, truth[['AU4', 'AU12']].to_numpy(), truth['subject'].to_numpy()) for shift in (0, 7)])
    monkeypatch.setattr(analyses, 'world_runs', lambda context, row: iter([(None, unseen, None, {})] * 2))
    monkeypatch.setattr(analyses, '_with_truth', lambda *a: next(outputs))
    own = context(['Pairwise, here'], {}, truth)
    own.ids, own.store = lambda row: ['a', 'b'], SimpleNamespace(read=lambda run, what: {'seed': 'ab'.index(run)})
    table, _, _ = analyses.comparability_table(own)
    assert np.allclose(table.set_index('item').loc['pseudo-intensity, within subjects', ['measured', 'low', 'high']].astype(float), 1)


def test_gain_beyond_the_first_world_draws_the_same_people(model, unseen, monkeypatch):
    """Single images that are right in one world and wrong in the next; what the range says is the same in both."""
    right, wrong = unseen.frames, unseen.frames.assign(AU4=0., AU12=0.)
    rows = ['VGG-16, one', 'Pairwise, one', 'VGG-16, two', 'Pairwise, two']
    monkeypatch.setattr(analyses, 'world_runs', lambda context, row: iter([(model, unseen, None, {'source': 'world'})]))
    monkeypatch.setattr(analyses, '_true', lambda spec: None)
    table, _, _ = analyses.inconsistency_table(context(rows, {r: wrong if r.endswith('two') else right for r in rows}, unseen.frames))
    beyond = table[table['item'].str.contains('beyond')].set_index('row')
    assert list(beyond.index) == ['two'] and beyond['item'].eq('variation range minus single image, beyond one, points').all()
    assert beyond.loc['two', ['measured', 'low', 'high']].tolist() == [100, 100, 100]


class Scorer:
    """A single-image model beside it."""
    def __init__(self, model): self.model = model
    def predict_scores(self, faces): return self.model.predict_scores(faces)


def test_real_data_have_no_true_intensity(model, unseen, monkeypatch):
    monkeypatch.setattr(analyses, 'world_runs', lambda context, row: iter([(model, unseen, None, {'source': 'folder'})]))
    with pytest.raises(ValueError, match='known in the face world only'): analyses.comparability_table(context(['Pairwise, here'], {}, unseen.frames))
