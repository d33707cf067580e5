"""AU R-CNN: the partition against a slow, independent rasteriser; RoI pooling against a loop; the network's promises."""
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from au_study.au_rcnn import partition as p
from au_study.au_rcnn.analyses import inference_table
from au_study.au_rcnn.crf import AUCRF
from au_study.au_rcnn.estimator import AURCNN, FaceCNN, paper_trainer
from au_study.au_rcnn.figures import loss_figure
from au_study.au_rcnn.network import AURCNNNet, backbone_parts, merge_logits, roi_loss
from au_study.training.batches import blob_faces
from au_study.facs import schematic_face
from au_study.nets.roi import roi_align, roi_pool
from au_study.study.claims import cells_effect, load_claims
from au_study.study.plan import make_plan
from au_study.study.published import published
from au_study.study.runs import full_params

# Corners of the RoIs in use, typed again on purpose: (landmark a, landmark b, pixels down); the corner is half-way between a and b.
CORNERS = {
    1: [(17, 17, -20), (19, 19, -20), (19, 19, 0), (17, 17, 0)],
    2: [(19, 19, -20), (21, 21, -20), (21, 21, 0), (19, 19, 0)],
    3: [(21, 21, -20), (27, 27, -40), (27, 27, 0), (21, 21, 0)],
    4: [(27, 27, -40), (22, 22, -20), (27, 27, 0), (22, 22, 0)],
    5: [(22, 22, -20), (24, 24, -20), (24, 24, 0), (22, 22, 0)],
    6: [(24, 24, -20), (26, 26, -20), (26, 26, 0), (24, 24, 0)],
    7: [(1, 1, 0), (17, 17, 0), (36, 36, 0)],
    8: [(17, 17, 0), (19, 19, 0), (37, 37, 0), (36, 36, 0)],
    9: [(19, 19, 0), (38, 38, 0), (39, 39, 0), (21, 21, 0)],
    10: [(21, 21, 0), (27, 27, 0), (28, 28, 0), (39, 39, 0)],
    11: [(22, 22, 0), (27, 27, 0), (28, 28, 0), (42, 42, 0)],
    12: [(22, 22, 0), (42, 42, 0), (43, 43, 0), (24, 24, 0)],
    13: [(24, 24, 0), (44, 44, 0), (45, 45, 0), (26, 26, 0)],
    14: [(26, 26, 0), (16, 16, 0), (15, 15, 0), (45, 45, 0)],
    15: [(2, 2, 0), (41, 2, 0), (3, 29, 0), (3, 3, 0)],
    16: [(41, 41, 0), (2, 41, 0), (3, 29, 0), (39, 39, 0)],
    17: [(39, 39, 0), (3, 29, 0), (29, 29, 0), (28, 28, 0)],
    18: [(28, 28, 0), (29, 29, 0), (13, 29, 0), (42, 42, 0)],
    19: [(42, 42, 0), (46, 46, 0), (14, 46, 0), (13, 29, 0)],
    20: [(14, 46, 0), (14, 14, 0), (13, 13, 0), (13, 29, 0)],
    21: [(3, 3, 0), (3, 29, 0), (4, 33, 0), (4, 4, 0)],
    22: [(4, 33, 0), (3, 29, 0), (29, 29, 0), (33, 33, 0)],
    23: [(33, 33, 0), (29, 29, 0), (13, 29, 0), (12, 33, 0)],
    24: [(13, 29, 0), (13, 13, 0), (12, 12, 0), (12, 33, 0)],
    25: [(4, 4, 0), (4, 33, 0), (5, 59, 0), (5, 5, 0)],
    26: [(5, 59, 0), (4, 33, 0), (33, 33, 0), (59, 59, 0)],
    27: [(33, 33, 0), (55, 55, 0), (11, 55, 0), (12, 33, 0)],
    28: [(11, 55, 0), (12, 33, 0), (12, 12, 0), (11, 11, 0)],
    29: [(59, 59, 0), (58, 58, 0), (6, 58, 0), (5, 59, 0)],
    30: [(6, 58, 0), (58, 58, 0), (57, 57, 0), (8, 57, 0)],
    31: [(57, 57, 0), (8, 57, 0), (10, 56, 0), (56, 56, 0)],
    32: [(56, 56, 0), (10, 56, 0), (11, 55, 0), (55, 55, 0)],
    33: [(5, 5, 0), (5, 59, 0), (6, 58, 0), (6, 6, 0)],
    34: [(6, 6, 0), (6, 58, 0), (8, 57, 0), (8, 8, 0)],
    35: [(8, 57, 0), (10, 56, 0), (10, 10, 0), (8, 8, 0)],
    36: [(10, 56, 0), (10, 10, 0), (11, 11, 0), (11, 55, 0)],
    37: [(33, 33, 0), (55, 55, 0), (56, 56, 0), (57, 57, 0), (58, 58, 0), (59, 59, 0)],
    38: [(1, 1, 0), (2, 2, 0), (36, 36, 0), (37, 37, 0)],
    39: [(14, 14, 0), (15, 15, 0), (44, 44, 0), (45, 45, 0)],
    40: [(19, 19, 0), (37, 37, 0), (38, 38, 0)],
    41: [(24, 24, 0), (43, 43, 0), (44, 44, 0)],
    42: [(36, 36, 0), (37, 37, 0), (38, 38, 0), (39, 39, 0), (40, 40, 0), (41, 41, 0)],
    43: [(42, 42, 0), (43, 43, 0), (44, 44, 0), (45, 45, 0), (46, 46, 0), (47, 47, 0)],
}
MASKS = {1: [1, 2, 5, 6, 8, 9, 12, 13, 40, 41, 42, 43], 2: [1, 2, 3, 4, 5, 6, 8, 9, 12, 13, 40, 41], 3: [16, 17, 18, 19, 42, 43],
         4: [10, 11, 17, 18, 22, 23], 5: [21, 22, 23, 24, 25, 26, 27, 28, 37], 6: list(range(25, 38)), 7: list(range(29, 37)), 8: [26, 27, 29, 30, 31, 32, 37]}
BP4D = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 23, 24, 27, 28)
BP4D_GROUPS, DISFA_GROUPS = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 7, 6]
DISFA = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)


def reference_boxes(landmarks, groups, size=512):
    """One face, by drawing: masks with cv2.fillConvexPoly, boxes of their connected components; None for a group whose number of components is unusual."""
    used = landmarks[1:]
    left, top = used[:, 0].min() - 20, used[:, 1].min() - 50
    width, height = np.ptp(used[:, 0]) + 40, np.ptp(used[:, 1]) + 50
    left, top = max(left, 0), max(top, 0)
    answer = {}
    for group in groups:
        mask = np.zeros((size, size), np.uint8)
        for roi in MASKS[group]:
            corners = np.array([(landmarks[a] + landmarks[b]) / 2 + [0, down] for a, b, down in CORNERS[roi]])
            centre = corners.mean(0)
            corners = np.array(sorted(corners.tolist(), key=lambda c: np.arctan2(c[0] - centre[0], c[1] - centre[1]))).astype(np.int32)
            inside = np.float32((corners - [left, top]) * [size / width, size / height]).astype(np.int32)
            cv2.fillConvexPoly(mask, inside, 1)
        count, parts = cv2.connectedComponents(mask, connectivity=8)
        boxes = []
        for part in range(1, count):
            y, x = np.nonzero(parts == part)
            box = (y.min(), x.min(), y.max(), x.max())
            if (box[2] - box[0] + 1) * (box[3] - box[1] + 1) >= .01 * size**2: boxes.append(box)
        answer[group] = sorted(boxes, key=lambda b: b[3]) if len(boxes) == (2 if group == 1 else 1) else None
    return answer


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inter = np.prod(np.maximum(high - low + 1, 0))
    return inter / (np.prod(a[2:] - a[:2] + 1) + np.prod(b[2:] - b[:2] + 1) - inter)


def random_faces(count, seed, height=(60, 700), roll=25, jitter=.02, where=(0, 900), whole=False):
    """Schematic faces of random size, width, roll and yaw, jittered, some of them partly outside the image."""
    rng = np.random.default_rng(seed)
    base = (schematic_face() - [.5, .6]) / .81
    faces = []
    for _ in range(count):
        scale = np.exp(rng.uniform(*np.log(height)))
        f = base * [rng.uniform(.75, 1.15), rng.uniform(.85, 1.1)]
        f[:, 0] = f[:, 0] + rng.uniform(-.35, .35) * (.25 - f[:, 0]**2)  # crude yaw
        f = f + rng.normal(0, jitter * rng.uniform(.1, 1), f.shape)
        angle = np.deg2rad(rng.uniform(-roll, roll))
        f = f @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * scale
        place = rng.uniform(*where, 2)
        if whole: place = np.maximum(place, 0) - f.min(0) + 60
        faces.append(f + place)
    return np.array(faces)


@pytest.mark.parametrize('aus,groups', [(BP4D, BP4D_GROUPS), (DISFA, DISFA_GROUPS)])
@pytest.mark.parametrize('kind', ['whole', 'small', 'border', 'rolled', 'integers'])
def test_boxes_equal_the_rasterised_masks(aus, groups, kind):
    options = dict(whole=dict(whole=True), small=dict(height=(40, 120), whole=True), border=dict(where=(0, 250)),
                   rolled=dict(roll=100, whole=True), integers=dict(whole=True))[kind]
    faces = random_faces(60, seed=3, **options)
    if kind == 'integers': faces = np.round(faces)
    ours = p.au_boxes(faces, aus)
    compared = 0
    for face, boxes in zip(faces, ours):
        reference, r = reference_boxes(face, groups), 0
        for group in groups:
            for k in range(2 if group == 1 else 1):
                if reference[group] is not None:
                    assert iou(boxes[r], np.array(reference[group][k])) >= .98, (kind, group, k, boxes[r], reference[group][k])
                    compared += 1
                r += 1
    assert compared > (.75 if kind in ('border', 'rolled') else .95) * 60 * ours.shape[1], compared


def test_touching_halves_stay_two_boxes():
    face = schematic_face(370).astype(float) + 100
    face[21], face[22] = face[27] + [8, -20], face[27] + [-8, -20]  # inner brow ends cross
    assert reference_boxes(face, [1])[1] is None  # the drawn mask has become one piece
    assert p.au_boxes(face[None], (1,)).shape == (1, 2, 4)


def test_scaled_offsets_follow_the_face():
    face = schematic_face(500).astype(float)
    boxes = [p.au_boxes((face * s + [300 * s, 300 * s])[None], BP4D, offsets='scaled') for s in (.25, 1, 3)]
    assert np.abs(boxes[0] - boxes[2]).max() <= 12 and np.abs(boxes[1] - boxes[2]).max() <= 4  # whole pixels of a small face are coarse
    unit = face[1:, 1].max() - face[1:, 1].min()
    exact = p.au_boxes((face * 400 / unit + 300)[None], BP4D, offsets='scaled')
    assert np.array_equal(exact, p.au_boxes((face * 400 / unit + 300)[None], BP4D))


def test_or_of_roi_labels_is_the_image_label():
    rng = np.random.default_rng(1)
    for aus in (BP4D, DISFA, (12, 1, 25), (17, 4)):
        labels = rng.choice([0, 1, np.nan], size=(200, len(aus))).astype(np.float32)
        rois = p.roi_labels(labels, aus)
        np.testing.assert_array_equal(p.merge_rois(rois, aus), labels)
        np.testing.assert_array_equal(np.isnan(labels)[:, None] & p.roi_membership(aus), np.isnan(rois))


def test_box_counts():
    assert len(p.groups_for(BP4D)) == 9 and len(p.groups_for(DISFA)) == 8 and len(p.groups_for((1, 2, 4, 6, 9, 12, 25, 26))) == 7


# --- RoI layers, network and estimators ---------------------------------------------------------------------------------------

def loop_pool(features, boxes, index, size, scale):
    """The definition of RoI pooling, bin by bin."""
    out = torch.zeros(len(boxes), features.shape[1], size, size, dtype=features.dtype)
    H, W = features.shape[2:]
    for m, box in enumerate(boxes):
        y0, x0, y1, x1 = (int(np.floor(float(v) * scale + .5)) for v in box)
        high, wide = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
        for i in range(size):
            for j in range(size):
                rows = [y for y in range(y0 + i * high // size, y0 + -(-(i + 1) * high // size)) if 0 <= y < H]
                cols = [x for x in range(x0 + j * wide // size, x0 + -(-(j + 1) * wide // size)) if 0 <= x < W]
                if rows and cols: out[m, :, i, j] = features[index[m]][:, rows][:, :, cols].amax((1, 2))
    return out


@pytest.mark.parametrize('cells,size', [(5, 4), (10, 3), (7, 7)])
def test_roi_pool_equals_the_definition_with_gradients(cells, size):
    g = torch.Generator().manual_seed(cells)
    features = torch.randn(2, 3, cells, cells, generator=g, dtype=torch.float64).requires_grad_()
    ends = torch.rand(40, 2, 2, generator=g, dtype=torch.float64) * 110 - 15
    boxes, index = torch.cat([ends.amin(1), ends.amax(1)], 1), torch.randint(2, (40,), generator=g)
    ours, loop = roi_pool(features, boxes, index, size, cells / 80), loop_pool(features, boxes, index, size, cells / 80)
    assert torch.equal(ours, loop)
    weight = torch.randn(ours.shape, generator=g, dtype=torch.float64)
    a, b = (torch.autograd.grad((o * weight).sum(), features)[0] for o in (ours, loop))
    assert torch.allclose(a, b, atol=1e-12)


def test_roi_align_of_a_plane_is_the_plane_and_its_gradient_checks():
    y, x = torch.meshgrid(torch.arange(12.), torch.arange(12.), indexing='ij')
    plane = (2 * y + 3 * x)[None, None].double()
    out = roi_align(plane, torch.tensor([[2., 3, 8, 9]]).double(), torch.tensor([0]), 3, 1.)[0, 0]
    centres_y, centres_x = 1.5 + 2 * torch.arange(3) + 1, 2.5 + 2 * torch.arange(3) + 1
    assert torch.allclose(out, (2 * centres_y[:, None] + 3 * centres_x).double())
    features = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[.3, 1.2, 3.7, 4.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: roi_align(f, boxes, torch.tensor([0]), 2, 1.), features)


AUS = (1, 4, 6, 12, 17, 25)


def small_net(kind):
    options = dict(resnet=dict(backbone='resnet50'), vgg=dict(backbone='vgg16', batch_norm=True, dropout=0.), pyramid=dict(backbone='resnet18', fpn=True))[kind]
    return backbone_parts(width=.125, depth=.3, stride=8, grid=3, **options)


@pytest.mark.parametrize('kind', ['resnet', 'vgg', 'pyramid'])
def test_a_step_lowers_the_loss_and_evaluation_is_deterministic(kind):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    marks = np.repeat(schematic_face(50)[None], 6, 0) + rng.uniform(2, 12, (6, 1, 2))
    boxes = torch.from_numpy(p.au_boxes(marks, AUS, 64, 'scaled', None)).float()
    labels = torch.from_numpy(p.roi_labels(rng.choice([0, 1, np.nan], (6, len(AUS)), p=[.5, .4, .1]), AUS))
    net, images = AURCNNNet(AUS, small_net(kind), boxes.mean(0).numpy(), 3, canonical=28.), torch.rand(6, 3, 64, 64)
    optimiser, losses = torch.optim.Adam(net.parameters(), lr=3e-3), []
    for _ in range(6):
        loss = roi_loss(net(images, boxes), labels)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    net.eval()
    assert torch.equal(net(images, boxes), net(images, boxes))
    scores = merge_logits(net(images, boxes), net.members)
    assert scores.shape == (6, len(AUS)) and np.allclose(scores.detach(), p.merge_rois(net(images, boxes).sigmoid().detach().numpy(), AUS))


def test_unlabelled_cells_do_not_train():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.randint(2, (2, 3, 4)).float()
    labels[0, :, 1] = torch.nan
    for kind in ('sigmoid', 'sampled'):
        gradient = torch.autograd.grad(roi_loss(logits, labels, kind), logits)[0]
        assert (gradient[0, :, 1] == 0).all() and gradient.abs().sum() > 0


def test_estimators_fit_predict_save_and_load(tmp_path):
    faces = blob_faces(size=32)
    train, test = faces.fold(0)
    trainer = paper_trainer(epochs=1, batch_size=8, lr=.01, selection='last', progress=False)
    for model in (AURCNN('resnet18', .125, .5, stride=8, roi_size=3, trainer=trainer), FaceCNN('vgg16', .0625, .5, stride=8, roi_size=2, batch_norm=True, trainer=trainer)):
        scores = model.fit(train).predict_scores(test)
        assert list(scores.columns[3:]) == faces.columns and scores[faces.columns].to_numpy().min() >= 0 and scores[faces.columns].to_numpy().max() <= 1
        model.save(tmp_path / type(model).__name__)
        assert type(model).load(tmp_path / type(model).__name__).predict_scores(test).equals(scores)
    assert AURCNN(test_boxes='mean').training_id() == AURCNN().training_id()


def test_label_fetch_is_the_printed_one():
    "Table 2's marks, typed again: the boxes that show an AU are its group's own and those of the groups that fetch it."
    shown = {1: ["g1L", "g1R", "g2"], 4: ["g2"], 6: ["g3"], 9: ["g3", "g4"], 12: ["g5", "g6"], 25: ["g5", "g6"], 17: ["g6", "g7"], 23: ["g5", "g6", "g8"]}
    aus = sorted(shown)
    members, names = p.roi_membership(aus), p.box_names(aus)
    for k, au in enumerate(aus):
        assert [n for n, member in zip(names, members[:, k]) if member] == sorted(shown[au], key=names.index), f"AU{au}"
    assert (p.roi_membership(aus, fetch=False).sum(0) == [2 if au == 1 else 1 for au in aus]).all()


# ---- what studies, claims and the profile `full` make of it

def test_full_has_the_published_head_where_the_paper_has_it():
    "1000 units before the scores of all static models but the pyramid's; AR_CRF and AR_TAL stand on the training of AR_res."
    runs = make_plan(["au_rcnn_table5", "au_rcnn_table5_video"], "full").runs
    first = {row.rpartition("/")[2]: (name, r) for name, r in runs.items() if r["fold"] == 0 and r["seed"] == 0 for row in r["rows"]}
    hidden = {row: r["parameters"]["params"].get("hidden") for row, (_, r) in first.items()}
    assert hidden == dict(CNN_res=1000, AR_vgg16=1000, AR_vgg19=1000, AR_res=1000, AR_mean_box=1000, AR_FPN=None, AR_ConvLSTM=256, AR_2stream=None, AR_CRF=None, AR_TAL=1024)
    video = next(name for name, r in runs.items() if "au_rcnn_table5_video/AR_res" in r["rows"] and r["fold"] == 0 and r["seed"] == 0)
    assert first["AR_CRF"][1]["before"] == first["AR_TAL"][1]["before"] == [video]


def test_small_profiles_keep_their_runs():
    for model in (AURCNN(), FaceCNN(), AUCRF(base=AURCNN())):
        assert not [k for k in full_params(model) if k.endswith("hidden")]
    assert full_params(AURCNN(hidden=1000))["hidden"] == full_params(AUCRF(base=AURCNN(hidden=1000)))["base__hidden"] == 1000


def test_claims_of_weights_and_of_speed_read_the_right_cells():
    "Weights are compared at the paper's sizes, whatever the profile; two losses that end alike differ in speed."
    sizes = SimpleNamespace(estimators={"au_rcnn": dict(width=.0625, depth=.1, stride=8, roi_size=4)}, world={"crop": 48})
    printed = published("au_rcnn", 11).rename_axis("item").reset_index().melt("item", var_name="row", value_name="value")
    table, _, _ = inference_table(SimpleNamespace(sizes=sizes, threads=1, published=printed), repeats=1, device="cpu")
    claims = {c.name: c.tests for c in load_claims(["au_rcnn"])}
    weights, = claims["fewer-parameters"]
    assert cells_effect(table, weights).value == 143_679_252 - 81_070_316
    curves = {"AR_res": [1., .6, .4, .2], "AR_2stream": [.7, .3, .2, .2]}
    models = {row: SimpleNamespace(history_=pd.DataFrame({"loss": loss})) for row, loss in curves.items()}
    table, _, _ = loss_figure(SimpleNamespace(runs=models, ids=lambda row: [row], model=lambda row, i: models[row]))
    speed, = claims["flow-converges-faster"]
    assert cells_effect(table, speed).value == pytest.approx(.7 - 1.)


def test_claims_of_backbones_say_what_the_quick_profile_has():
    "Convolutions on the way from the picture to the box, and weights beside those of ResNet-101, counted in the networks of the quick profile."
    nets = {row.rpartition("/")[2]: r["parameters"]["params"] for r in make_plan(["au_rcnn_table5"], "quick").runs.values() for row in r["rows"]}
    def built(row):
        p = nets[row]
        parts = backbone_parts(p["backbone"], p["width"], p["depth"], p["stride"], p["roi_size"], False, p["batch_norm"], p["dropout"])
        way = [m for name, m in parts.named_modules() if isinstance(m, torch.nn.Conv2d) and "downsample" not in name]
        return len(way), sum(w.numel() for w in parts.parameters())
    deep, weights = built("AR_res")
    notes = {c.name: c.note for c in load_claims(["au_rcnn"])}
    for claim, row, name in (("deeper-backbone", "AR_vgg19", "VGG-19"), ("best-of-static", "AR_vgg16", "VGG-16")):
        convolutions, n = built(row)
        assert f"ResNet-101 has {deep} convolutions on its way and {name} {convolutions}, with {n / weights:.1f} times the weights" in notes[claim]


def test_aus_that_do_not_gain_may_stay_as_they_are():
    tests = {c.name: c.tests for c in load_claims(["au_rcnn"])}["large-aus-do-not-gain"]
    assert {(t.item, t.direction, t.margin) for t in tests} == {(("AU12",), "not higher", 1), (("AU25",), "not higher", 1)}
