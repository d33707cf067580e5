"""AR_CRF: three ways to one log Z, the loss against counting, a whole run that is saved, loaded and refused when damaged."""
import itertools
import json

import numpy as np
import pytest
import torch

from au_study.au_rcnn import crf
from au_study.au_rcnn.estimator import AURCNN, paper_trainer
from au_study.au_rcnn.tal import AUTAL
from au_study.au_rcnn.two_stream import ARTwoStream
from au_study.training import ModelFileError
from au_study.training.batches import blob_faces

BP4D = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)


def draw(*shape, seed=0, scale=1.):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(unary, edges, pair):
    """One graph, plain loops: log Z, node and edge marginals, best labelling."""
    N, Y = unary.shape
    table = {s: sum(unary[n, y].item() for n, y in enumerate(s)) + sum(pair[e, s[a], s[b]].item() for e, (a, b) in enumerate(edges)) for s in itertools.product(range(Y), repeat=N)}
    Z = sum(np.exp(v) for v in table.values())
    node, edge = np.zeros((N, Y)), np.zeros((len(edges), Y, Y))
    for s, v in table.items():
        for n, y in enumerate(s): node[n, y] += np.exp(v) / Z
        for e, (a, b) in enumerate(edges): edge[e, s[a], s[b]] += np.exp(v) / Z
    return np.log(Z), node, edge, max(table, key=table.get)


@pytest.mark.parametrize('seed', range(12))
def test_elimination_is_counting(seed):
    rng = np.random.default_rng(seed)
    n, labels = int(rng.integers(2, 7)), int(rng.integers(2, 4))
    every = list(itertools.combinations(range(n), 2))
    edges = [every[i] for i in sorted(rng.choice(len(every), rng.integers(1, len(every) + 1), replace=False))]
    graph = crf.Graph(n, torch.tensor(edges), torch.zeros(len(edges), dtype=torch.long))
    unary, pair = draw(2, n, labels, seed=seed, scale=2), draw(2, len(edges), labels, labels, seed=seed + 99, scale=2)
    logz, node, edge = crf.gradients_of(lambda u, p: crf.log_partition(graph, u, p), unary, pair)
    best = crf.gradients_of(lambda u, p: crf.log_partition(graph, u, p, largest=True), unary, pair)[1].argmax(2)
    brute = crf.brute_force(graph, unary, pair)
    for b in range(2):
        z, by_node, by_edge, labelling = count(unary[b], edges, pair[b])
        assert abs(logz[b].item() - z) < 1e-10 and abs(brute[0][b].item() - z) < 1e-10
        assert np.allclose(node[b], by_node, atol=1e-10) and np.allclose(edge[b], by_edge, atol=1e-10) and np.allclose(brute[1][b], by_node, atol=1e-10)
        assert tuple(best[b].tolist()) == labelling == tuple(brute[2][b].tolist())


@pytest.mark.parametrize('T, R, Y', [(1, 1, 2), (2, 1, 3), (1, 4, 2), (3, 3, 2), (2, 2, 3), (2, 4, 2)])
def test_frame_chain_is_counting(T, R, Y):
    unary, spatial, temporal = draw(2, T, R, Y, seed=1), draw(2, R * (R - 1) // 2, Y, Y, seed=2), draw(2, R, Y, Y, seed=3)
    logz, node, by_space, by_time = crf.gradients_of(crf.frame_chain, unary, spatial, temporal)
    pairs = list(itertools.combinations(range(R), 2))
    edges = [(t * R + a, t * R + b) for t in range(T) for a, b in pairs] + [(t * R + r, (t + 1) * R + r) for t in range(T - 1) for r in range(R)]
    for b in range(2):
        points = [spatial[b, pairs.index((i % R, j % R))] if j - i < R and i // R == j // R else temporal[b, i % R] for i, j in edges]
        z, by_node, by_edge, _ = count(unary[b].reshape(T * R, Y), edges, torch.stack(points) if edges else torch.zeros(0, Y, Y))
        assert abs(logz[b].item() - z) < 1e-10 and np.allclose(node[b].reshape(T * R, Y), by_node, atol=1e-10)
        if pairs: assert np.allclose(by_space[b], by_edge[:T * len(pairs)].reshape(T, -1, Y, Y).sum(0), atol=1e-10)
        if T > 1: assert np.allclose(by_time[b], by_edge[T * len(pairs):].reshape(T - 1, R, Y, Y).sum(0), atol=1e-10)


def test_loopy_is_exact_on_chains_and_close_on_weak_cycles():
    chain = crf.face_graph(6, 2, 'temporal')
    unary, pair = draw(3, 12, 3, seed=1), draw(3, len(chain.edges), 3, 3, seed=2)
    logz, node, edge = crf.gradients_of(lambda u, p: crf.log_partition(chain, u, p), unary, pair)
    found = crf.loopy(chain, unary, pair, rounds=300, tolerance=1e-13)
    assert torch.allclose(found.log_z, logz, atol=1e-8) and torch.allclose(found.node, node, atol=1e-8) and torch.allclose(found.edge, edge, atol=1e-8)
    assert found.rounds < 300
    best = crf.gradients_of(lambda u, p: crf.log_partition(chain, u, p, largest=True), unary, pair)[1].argmax(2)
    assert torch.equal(crf.loopy(chain, unary, pair, largest=True, rounds=300).node.argmax(2), best)
    cyclic = crf.face_graph(3, 3)
    unary, pair = draw(3, 9, 2, seed=3), draw(3, len(cyclic.edges), 2, 2, seed=4, scale=.2)
    exact = crf.gradients_of(lambda u, p: crf.log_partition(cyclic, u, p), unary, pair)
    found = crf.loopy(cyclic, unary, pair)
    assert (found.node - exact[1]).abs().max() < .01 and (found.log_z - exact[0]).abs().max() < .02


def test_strong_edges_do_not_break_it():
    graph = crf.face_graph(4, 4)
    unary, pair = draw(2, 16, 2, seed=1, scale=50), draw(2, len(graph.edges), 2, 2, seed=2, scale=50)
    for value in (crf.log_partition(graph, unary, pair), crf.loopy(graph, unary, pair).log_z, crf.loopy(graph, unary.float(), pair.float()).log_z): assert torch.isfinite(value).all()


def test_too_wide_says_so():
    graph = crf.face_graph(2, 9)
    with pytest.raises(ValueError, match='Use loopy'): crf.log_partition(graph, draw(1, 18, 4), draw(1, len(graph.edges), 4, 4))


def test_splits_and_size():
    splits = crf.label_splits(BP4D)
    assert splits.shape == (4, 7) and set(splits.flatten()) == set(range(12))
    assert crf.crf_size(2048, 22, 1) == 45540  # as printed
    net = crf.CRFNet(32, splits)
    assert sum(p.numel() for p in net.parameters()) == 4 * crf.crf_size(32, 7, 2)


@pytest.mark.parametrize('space, symmetric, types', [('own', False, 2), ('own', True, 1), ('all', False, 2), ('all', True, 1)])
def test_loss_is_counting(space, symmetric, types):
    net = crf.CRFNet(3, crf.label_splits((1, 4)), types, space, symmetric).double()   # boxes g1L, g1R, g2
    with torch.no_grad():
        for i, p in enumerate(net.parameters()): p.copy_(draw(*p.shape, seed=i))
    x, labels = draw(1, 2, 3, 3, seed=5), torch.tensor([[[1., 0.], [float('nan'), 1.]]], dtype=torch.float64)
    edges = crf.face_graph(2, 3).edges.tolist()
    table = (net.a + net.a.mT) / 2 if symmetric else net.a
    own = [1, 1, 2]
    may = [[0, own[n % 3]] if space == 'own' else [0, 1, 2] for n in range(6)]
    agree = [[own[n % 3] if v == 1 else 0] if v == v else [0, own[n % 3]] for n in range(6) for v in [labels[0, n // 3, own[n % 3] - 1].item()]]
    def points(s):
        nodes = sum((net.w[0, y] * x[0, n // 3, n % 3]).sum().item() for n, y in enumerate(s))
        return nodes + sum(table[0, 0 if a // 3 == b // 3 else types - 1, s[a], s[b]].item() for a, b in edges)
    def total(choices): return sum(np.exp(points(s)) for s in itertools.product(*choices))
    assert abs(crf.crf_loss(net, x, labels).item() - (np.log(total(may)) - np.log(total(agree)))) < 1e-9


@pytest.fixture(scope='module')
def fitted():
    faces = blob_faces(subjects=4, frames=8, size=32)
    train, test = faces.fold(0)
    base = AURCNN('resnet18', width=.0625, depth=.1, stride=8, roi_size=2, trainer=paper_trainer(epochs=2, batch_size=8, selection='last', progress=False))
    return train, test, crf.AUCRF(base=base, iterations=20).fit(train)


def test_estimator(fitted, tmp_path):
    train, test, model = fitted
    course = model.stage_history_
    assert course.loss.iloc[-1] < course.loss.iloc[0] == pytest.approx(np.log(2))
    scores = model.predict_scores(test)
    assert scores[test.columns].to_numpy().min() >= 0 and scores[test.columns].to_numpy().max() <= 1
    model.save(tmp_path / 'model')
    assert crf.AUCRF.load(tmp_path / 'model').predict_scores(test).equals(scores)
    record = json.loads((tmp_path / 'model/estimator.json').read_text()); record['params']['l2'] = 5.
    (tmp_path / 'model/estimator.json').write_text(json.dumps(record))
    with pytest.raises(ModelFileError, match='changed after saving'): crf.AUCRF.load(tmp_path / 'model')


def test_videos_are_apart_and_labels_unseen(fitted):
    train, test, model = fitted
    whole = model.predict_scores(train)
    one = np.flatnonzero(train.frames.subject == train.subjects[-1])
    assert np.allclose(model.predict_scores(train[one])[train.columns], whole[train.columns].iloc[one], atol=1e-6)


def test_same_data_same_weights(fitted):
    train, test, model = fitted
    again = crf.AUCRF(base=model.base, iterations=20).fit(train)
    assert all(torch.equal(a, b) for a, b in zip(again.module_.state_dict().values(), model.module_.state_dict().values()))


def test_stands_on_two_streams_and_on_two_layers(tmp_path, monkeypatch):
    "The paper's AR_TAL reads the two-stream network's features, its AR_CRF those before a layer of 1000."
    monkeypatch.setenv('AU_STUDY_CACHE', str(tmp_path / 'cache'))
    train, test = blob_faces(subjects=4, frames=8, size=32).fold(0)
    small = dict(backbone='resnet18', width=.0625, depth=.1, stride=8, roi_size=2, trainer=paper_trainer(epochs=1, batch_size=8, selection='last', progress=False))
    for base in (ARTwoStream(**small, T=2), AURCNN(**small, hidden=1000)):
        model = crf.AUCRF(base=base, iterations=2).fit(train)
        assert model.module_.stage.w.shape[-1] == 32                                                # 512 pooled channels times 1/16
        model.save(tmp_path / type(base).__name__)
        assert crf.AUCRF.load(tmp_path / type(base).__name__).predict_scores(test).equals(model.predict_scores(test))


@pytest.mark.parametrize('kind, sizes', [(crf.AUCRF, dict(iterations=1)), (AUTAL, dict(layers=1, channels=4, hidden=8, pool=2, n_lengths=2, before=8, after=4, epochs=1))])
def test_who_chose_the_base_epoch_teaches_nobody(kind, sizes, monkeypatch):
    "The model on top learns from the people that the base learnt from, as AR_res beside it."
    train, _ = blob_faces(subjects=6, frames=8, size=32).fold(0)
    trainer = paper_trainer(epochs=1, batch_size=8, selection='inner', inner_fraction=.34, progress=False)
    heard, learn = [], kind.learn
    monkeypatch.setattr(kind, 'learn', lambda self, stage, features, labels, stacks: heard.append((features, labels)) or learn(self, stage, features, labels, stacks))
    model = kind(base=AURCNN('resnet18', width=.0625, depth=.1, stride=8, roi_size=2, trainer=trainer), **sizes).fit(train)
    rest, held = train.split_subjects(.34, trainer.seed)
    (features, labels), = heard
    assert len(held.subjects) and model.history_.attrs['selected_on'] == [str(s) for s in held.subjects]
    assert len(features) == len(rest) < len(train) and np.array_equal(labels, rest.labels(), equal_nan=True)
