"""AR_TAL: the detector's parts in one dimension against slow references; segments to frames and back; a whole run."""
import numpy as np
import pytest
import torch

from au_study.au_rcnn import tal
from au_study.au_rcnn.estimator import AURCNN, paper_trainer
from au_study.training import ModelFileError
from au_study.training.batches import blob_faces


def spans_of(*shape, frames=20, seed=0):
    return (torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) * frames).sort(-1).values


def test_overlap_and_moves():
    a, b = spans_of(6, seed=1), spans_of(7, seed=2)
    slow = [[max(0, min(p[1], q[1]) - max(p[0], q[0])) / (max(p[1], q[1]) - min(p[0], q[0])) if min(p[1], q[1]) > max(p[0], q[0]) else 0 for q in b.tolist()] for p in a.tolist()]
    assert np.allclose(tal.overlap(a, b), slow, atol=1e-6)
    assert torch.allclose(tal.decode(a, tal.encode(a, b[:6]), 20), b[:6], atol=1e-3)


def slow_suppress(spans, limit):
    stay = []
    for i, span in enumerate(spans):
        if (span[1] - span[0]) > 1e-3 and all(tal.overlap(span[None], spans[j][None]).item() <= limit for j in stay): stay.append(i)
    return [i in stay for i in range(len(spans))]


@pytest.mark.parametrize('limit', (.3, .7))
def test_suppression_is_the_greedy_one(limit):
    spans = spans_of(4, 30, frames=10)
    spans[0, 3] = 0.
    assert tal.suppress(spans, limit).tolist() == [slow_suppress(s, limit) for s in spans]


def test_pooling_of_odd_places():
    x = torch.arange(12.).view(1, 6, 2)
    for span, expected in [((0, 6), [4, 10]), ((-3, 3), [0, 4]), ((5.5, 5.6), [10, 10]), ((6, 9), [10, 10])]:
        assert tal.soi_pool(x, torch.tensor([[span]], dtype=torch.float), 2)[0, 0, :, 0].tolist() == expected, span


def test_segments_there_and_back():
    labels = (np.random.default_rng(0).random((3, 30, 4)) < .5).astype(np.float32)
    true = tal.label_segments(labels, np.ones((1, 4), bool))
    chance = (true.aus[..., None] == torch.arange(4)).float()
    assert np.array_equal(tal.frame_scores(true.spans, chance, 30), labels)


def test_unlabelled_counts_for_nothing():
    net = tal.TALNet(4, np.ones((1, 1), bool), n_lengths=2, layers=1, channels=4, pool=2, hidden=8)
    net.lengths.copy_(torch.tensor([2., 4.]))
    x = torch.rand(1, 10, 1, 4, generator=torch.Generator().manual_seed(0))
    nothing = torch.full((1, 10, 1), torch.nan)
    parts = tal.tal_loss(net, x, nothing, tal.label_segments(nothing.numpy(), np.ones((1, 1), bool)), 8, 4)
    assert all(v.item() == 0 for v in parts.values())


def test_no_event_at_all_is_refused():
    quiet = tal.label_segments(np.zeros((2, 5, 1)), np.ones((1, 1), bool))
    with pytest.raises(ValueError, match='no segment to learn from'): tal.anchor_lengths([quiet], 3)


def test_one_class_is_one_class():
    net = tal.TALNet(4, np.eye(2, dtype=bool), n_lengths=2, layers=1, channels=4, pool=2, hidden=8, labels='single')
    spans, chance = tal.tal_segments(net, torch.rand(1, 9, 2, 4), 8, 4)
    assert (chance.sum(3) < 1).all() and (chance[0, 0, :, 1] == 0).all() and (chance[0, 1, :, 0] == 0).all()


def test_estimator(tmp_path):
    faces = blob_faces(subjects=4, frames=12, size=32)
    train, test = faces.fold(0)
    base = AURCNN('resnet18', width=.0625, depth=.1, stride=8, roi_size=2, trainer=paper_trainer(epochs=2, batch_size=8, selection='last', progress=False))
    small = dict(base=base, layers=2, channels=4, hidden=16, pool=2, n_lengths=3, before=16, after=6, batch_videos=1, lr=3e-3)
    model = tal.AUTAL(**small, epochs=25).fit(train)
    assert model.stage_history_.loss.iloc[-1] < model.stage_history_.loss.iloc[0]
    scores = model.predict_scores(test)
    assert scores.equals(tal.AUTAL(**small, epochs=25).fit(train).predict_scores(test))
    model.save(tmp_path / 'model')
    assert tal.AUTAL.load(tmp_path / 'model').predict_scores(test).equals(scores)
    (tmp_path / 'model/weights.safetensors').write_bytes(b'')
    with pytest.raises(ModelFileError, match='changed after saving'): tal.AUTAL.load(tmp_path / 'model')
