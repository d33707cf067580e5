"""AUNet's landmark side: key names and counts written down independently, public files accepted and refused, losses in double precision, and eyes that never change."""
import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from au_study.aunet import estimator as aunet_estimator
from au_study.aunet.analyses import complexity_table, variant_table
from au_study.aunet.estimator import AUNet, flow_maps
from au_study.aunet.estimator import paper_trainer as aunet_trainer
from au_study.aunet.fan import FAN, KNOWN_FILES, ConvBlock, KnownFile, count_parameters, decode_heatmaps, encode_heatmaps, load_public, save_fan
from au_study.aunet.features import basic_features, landmark_share
from au_study.aunet.landmarks import FANLandmarks, cumulated_area, landmark_errors, landmark_trainer
from au_study.aunet.network import AUHead, AUNetwork, FrozenTrunk, au_weights, complexity, weighted_bce
from au_study.aunet.parsing import PARTS, FaceParsing, ParsingNet, region_scores, region_shares
from au_study.faces.faceset import FaceSet
from au_study.faces.mixture import mix
from au_study.nets.weights import WeightFileError
from au_study.study.manifests import project_root
from au_study.training import AUEstimator
from au_study.training.batches import blob_faces
from au_study.training.estimator import ModelFileError
from au_study.world.skin import REGIONS


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def public_keys(stacks):
    """Names and shapes of the public files' entries, from their layout: 256 channels, blocks of 128 + 64 + 64."""
    out = {}
    def norm(name, n): out.update({f'{name}.{k}': (n,) for k in ('weight', 'bias', 'running_mean', 'running_var')} | {f'{name}.num_batches_tracked': ()})
    def conv(name, i, o, k, bias=True): out.update({f'{name}.weight': (o, i, k, k)} | ({f'{name}.bias': (o,)} if bias else {}))
    def block(name, i, o):
        for j, (a, b) in enumerate(((i, o // 2), (o // 2, o // 4), (o // 4, o // 4)), 1): norm(f'{name}.bn{j}', a); conv(f'{name}.conv{j}', a, b, 3, False)
        if i != o: norm(f'{name}.downsample.0', i); conv(f'{name}.downsample.2', i, o, 1, False)
    conv('conv1', 3, 64, 7); norm('bn1', 64)
    block('conv2', 64, 128); block('conv3', 128, 128); block('conv4', 128, 256)
    for s in range(stacks):
        for level in (1, 2, 3, 4):
            for branch in ('b1', 'b2', 'b3'): block(f'm{s}.{branch}_{level}', 256, 256)
        block(f'm{s}.b2_plus_1', 256, 256); block(f'top_m_{s}', 256, 256)
        conv(f'conv_last{s}', 256, 256, 1); norm(f'bn_end{s}', 256); conv(f'l{s}', 256, 68, 1)
        if s < stacks - 1: conv(f'bl{s}', 256, 256, 1); conv(f'al{s}', 68, 256, 1)
    return out


@pytest.mark.parametrize('stacks,parameters,entries', [(2, 12_106_504, 599), (4, 23_820_176, 1129)])
def test_keys_shapes_and_counts_are_those_of_the_public_files(stacks, parameters, entries):
    net = FAN(stacks)
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == public_keys(stacks)
    assert (count_parameters(net), len(net.state_dict())) == (parameters, entries)


def test_block_and_head_counts():
    assert count_parameters(ConvBlock(256, 256)) == 406_400
    assert [count_parameters(AUHead(768, n)) for n in (12, 8)] == [1_857_164, 1_856_648]
    assert count_parameters(AUHead(768, 12, norm=False)) == 1_857_164 - 256


@pytest.mark.parametrize('n_aus,count', [(12, 2_657_036), (8, 2_656_520), (15, 2_657_423)])
def test_temporal_variant_counts(n_aus, count):
    class Faces: aus = tuple(range(n_aus))
    net = AUNet(motion='tdn').build(Faces())
    assert count_parameters(net, trainable=True) == count
    assert count_parameters(net) - count == 12_106_504                      # FAN, frozen


def test_operations_of_the_complexity_paragraph():
    with torch.device('meta'):                                              # shapes are enough to count
        assert math.isclose(complexity(FAN(2), (1, 3, 256, 256))['macs'] / 1e9, 13.97, rel_tol=.01)
        assert math.isclose(complexity(AUHead(768, 12), (1, 768, 64, 64))['macs'] / 1e9, 3.02, rel_tol=.01)
    table = complexity_table(SimpleNamespace(faces=SimpleNamespace(aus=range(12))))[0].set_index(['row', 'item'])
    for row, weights in (('face alignment module', 12.106504), ('AU-FAN, trained part', 1.857164), ('AUNet, trained part', 2.657036)):
        assert math.isclose(table.loc[(row, 'weights, millions'), 'measured'], weights, abs_tol=1e-9)
        operations = table.loc[(row, 'multiplications, thousand millions')]
        assert math.isclose(operations['measured'], operations['published'], rel_tol=.01), row


def test_variants_of_table_six_have_what_is_printed():
    printed = pd.read_csv(project_root() / 'data_manifests/published/aunet_table6.csv')
    table, _, note = variant_table(SimpleNamespace(faces=SimpleNamespace(aus=range(12)), published=printed))
    assert note == '12 of 12 printed cells agree.'
    weights = table[table['item'] == 'weights that are trained'].set_index('row')['measured']
    assert weights.to_dict() == {'AU-FAN': '1,857,164', 'AU-VAE': '1,857,164', 'AU-TDN': '2,657,036', 'AUNet': '2,657,036'}
    _, _, wrong = variant_table(SimpleNamespace(faces=SimpleNamespace(aus=range(12)), published=printed.assign(value='✓')))
    assert wrong.startswith('8 of 12')


def block_by_hand(x, block):
    """Fig. 5 written out, in evaluation mode."""
    norm = lambda x, n: (x - n.running_mean[:, None, None]) / torch.sqrt(n.running_var[:, None, None] + n.eps) * n.weight[:, None, None] + n.bias[:, None, None]
    conv = lambda x, c: F.conv2d(x, c.weight, padding=1)
    a = conv(norm(x, block.bn1).clamp(min=0), block.conv1)
    b = conv(norm(a, block.bn2).clamp(min=0), block.conv2)
    c = conv(norm(b, block.bn3).clamp(min=0), block.conv3)
    skip = x if block.downsample is None else F.conv2d(norm(x, block.downsample[0]).clamp(min=0), block.downsample[2].weight)
    return torch.cat([a, b, c], 1) + skip


def shake(net, seed=0):
    """Running statistics that are not 0 and 1."""
    rng = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .2, generator=rng); m.running_var.uniform_(.5, 2, generator=rng)
    return net


@pytest.mark.parametrize('pooling', ['max', 'avg'])
def test_network_against_its_description(pooling):
    torch.manual_seed(0)
    net = shake(FAN(2, pooling, width=.0625)).double().eval()
    pool = {'max': F.max_pool2d, 'avg': F.avg_pool2d}[pooling]
    def glass(m, level, x):
        part = lambda n: getattr(m, n)
        low = block_by_hand(pool(x, 2), part(f'b2_{level}'))
        low = glass(m, level - 1, low) if level > 1 else block_by_hand(low, m.b2_plus_1)
        low = block_by_hand(low, part(f'b3_{level}'))
        return block_by_hand(x, part(f'b1_{level}')) + low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
        x = net.bn1(net.conv1(images)).clamp(min=0)
        x = pool(block_by_hand(x, net.conv2), 2)
        x = stem = block_by_hand(block_by_hand(x, net.conv3), net.conv4)
        heat, last = [], []
        for i in range(2):
            part = lambda n, i=i: getattr(net, f'{n}{i}')
            y = part('bn_end')(part('conv_last')(block_by_hand(glass(part('m'), 4, x), part('top_m_')))).clamp(min=0)
            last.append(y); heat.append(part('l')(y))
            if not i: x = x + net.bl0(y) + net.al0(heat[0])
        torch.testing.assert_close(net(images), torch.stack(heat, 1), atol=1e-10, rtol=0)
        f = basic_features(net, images)
        a = heat[1].sum(1, keepdim=True)
        torch.testing.assert_close(f.joined(), torch.cat([stem, net.bl0(last[0]) * a, last[1] * a], 1), atol=1e-10, rtol=0)
        torch.testing.assert_close(basic_features(net, images, 'paper').first, last[0], atol=1e-10, rtol=0)


# ---- public files -------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def weights():
    rng = torch.Generator().manual_seed(0)
    return {k: torch.zeros((), dtype=torch.long) if not s else torch.rand(s, generator=rng) * .1 for k, s in public_keys(2).items()}


def stored(folder, state, name='mine.pth'):
    import hashlib
    torch.save(state, folder / name)
    return folder / name, hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_public_names_load_by_key_strictly(tmp_path, weights):
    file, sha = stored(tmp_path, dict(reversed(list(weights.items()))))     # another order: keys count, not places
    net = load_public(file, sha256=sha, pooling='max')
    assert not net.training and all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    old, sha = stored(tmp_path, {k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')}, 'old.pth')
    assert load_public(old, sha256=sha, pooling='max').stacks == 2
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / 'a.safetensors')
    import hashlib
    sha = hashlib.sha256((tmp_path / 'a.safetensors').read_bytes()).hexdigest()
    assert load_public(tmp_path / 'a.safetensors', sha256=sha, pooling='avg').pooling == 'avg'


@pytest.mark.parametrize('change,words', [
    (lambda s: s.pop('m1.b3_2.bn1.weight'), 'lacks 1 of 599 entries, first m1.b3_2.bn1.weight'),
    (lambda s: s.update(extra=torch.zeros(2)), 'has unknown 1 of 599 entries, first extra'),
    (lambda s: s.update({'al0.weight': torch.zeros(256, 49, 1, 1)}), r'al0.weight \(256, 49, 1, 1\) for \(256, 68, 1, 1\)'),
    (lambda s: s.update({'l3.weight': torch.zeros(1)}), 'lacks|unknown')])
def test_files_that_do_not_fit_are_refused(tmp_path, weights, change, words):
    state = dict(weights)
    change(state)
    file, sha = stored(tmp_path, state)
    with pytest.raises(WeightFileError, match=words): load_public(file, sha256=sha, pooling='max')


def test_wrong_hash_unknown_file_and_missing_file_are_refused(tmp_path, weights):
    file, sha = stored(tmp_path, dict(weights))
    with pytest.raises(WeightFileError, match='was expected'): load_public(file, sha256='f' * 64, pooling='max')
    with pytest.raises(WeightFileError, match=f'not a known file. Its SHA-256 is {sha}'): load_public(file, pooling='max')
    with pytest.raises(WeightFileError, match="pooling='avg'"): load_public(file, sha256=sha)
    with pytest.raises(WeightFileError, match='no weight file'): load_public(tmp_path / 'none.pth', sha256=sha)
    with pytest.raises(WeightFileError, match='fetched only if its hash is known'): load_public('https://example.invalid/fan.pth')
    torch.save(dict(weights), tmp_path / KNOWN_FILES[0].name)
    with pytest.raises(WeightFileError, match='not the public file of that name'): load_public(tmp_path / KNOWN_FILES[0].name)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self): return (eval, (f"open({str(tmp_path / 'boom')!r}, 'w').close()",))
    import hashlib
    for name, dump in (('a.pth', lambda f: torch.save({'conv1.weight': Bomb()}, f)), ('b.pth', lambda f: f.write_bytes(pickle.dumps(Bomb())))):
        dump(tmp_path / name)
        with pytest.raises(WeightFileError, match='nothing else is opened'): load_public(tmp_path / name, sha256=hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(), pooling='max')
    assert not (tmp_path / 'boom').exists()


def test_pooling_travels_with_the_weights(tmp_path, weights, monkeypatch):
    import hashlib
    file, sha = stored(tmp_path, dict(weights))
    blob = hashlib.sha1(b'blob %d\0' % file.stat().st_size + file.read_bytes()).hexdigest()
    for known in (KnownFile('p.pth', 'max', 2, sha256=sha[:10]), KnownFile('p.pth', 'max', 2, blob=blob[:8])):
        monkeypatch.setattr('au_study.aunet.fan.KNOWN_FILES', (known,))
        assert load_public(file).pooling == 'max'
        with pytest.raises(WeightFileError, match='trained with max pooling'): load_public(file, pooling='avg')
    net = FAN(2, 'avg', width=.0625)
    again = load_public(save_fan(net, tmp_path / 'own.safetensors'))
    assert repr(again) == repr(net)
    with pytest.raises(WeightFileError, match='trained with avg pooling'): load_public(tmp_path / 'own.safetensors', pooling='max')
    with pytest.raises(RuntimeError, match='trained with avg pooling'): FAN(2, 'max', width=.0625).load_state_dict(net.state_dict())
    torch.save(net.state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(RuntimeError, match='trained with avg pooling'): FAN(2, 'max', width=.0625).load_state_dict(torch.load(tmp_path / 'plain.pth', weights_only=True))


# ---- heat maps and errors -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size,side', [(256, 64), (80, 20), (64, 16), (100, 25)])
def test_points_survive_their_heat_maps(size, side):
    rng = np.random.default_rng(0)
    points = torch.tensor(rng.uniform(.15, .85, (50, 68, 2)) * size, dtype=torch.float32)
    step = size / side
    for reading, worst in (('centroid', .1), ('quarter', .36), ('peak', .72)):
        found, height = decode_heatmaps(encode_heatmaps(points, size, side), size, reading)
        assert (found - points).norm(dim=-1).max() < worst * step, reading
    assert (height > .7).all()


def test_heat_maps_against_the_formula():
    points = torch.tensor([[[10.3, 41.7], [-3., 5.], [63.4, 63.4]]], dtype=torch.float64)
    maps = encode_heatmaps(points, 64, 16, sigma=1.5)
    for v in range(16):
        for u in range(16):
            x, y = 4 * u + 1.5, 4 * v + 1.5                                  # centre of the map's pixel in the picture
            expected = math.exp(-((x - 10.3) ** 2 + (y - 41.7) ** 2) / (2 * (4 * 1.5) ** 2))
            assert math.isclose(maps[0, 0, v, u].item(), expected, abs_tol=1e-12)
    assert maps[0, 1].abs().max() == 0 and maps[0, 2].max() > .9


def test_errors_against_a_loop():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 80, (9, 68, 2))
    found = truth + rng.normal(0, 1, truth.shape)
    each = [sum(math.dist(a, b) for a, b in zip(f, t)) / 68 / math.dist(t[36], t[45]) for f, t in zip(found, truth)]
    r = landmark_errors(found, truth, limit=.05)
    assert math.isclose(r['nme'], sum(each) / 9, rel_tol=1e-9) and math.isclose(r['failure_rate'], sum(e > .05 for e in each) / 9)
    grid = np.linspace(0, .05, 20001)
    assert math.isclose(r['auc'], np.mean([(np.array(each) <= g).mean() for g in grid]), abs_tol=1e-3)
    assert cumulated_area([0, 0]) == 1 and cumulated_area([1.]) == 0


def test_share_near_landmarks():
    marks = torch.full((1, 68, 2), 39.5)
    assert landmark_share(torch.ones(1, 20, 20), marks, 80).item() == pytest.approx(1)
    centre = torch.zeros(1, 20, 20); centre[:, 9:11, 9:11] = 1
    assert landmark_share(centre, marks, 80) > 15 > landmark_share(torch.ones(1, 20, 20) - .5 * centre, marks, 80)


# ---- loss ---------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('holes', [False, True])
def test_weighted_cross_entropy_in_double_precision(holes):
    rng = np.random.default_rng(3)
    y = (rng.random((40, 5)) < [.1, .3, .5, .7, .05]).astype(float)
    y[:2, 4] = 1, 0
    z = rng.normal(0, 3, y.shape)
    r = y.mean(0)
    w = (1 / r) / sum(1 / r)
    assert np.allclose(au_weights(y).numpy(), w, atol=1e-6) and np.allclose(au_weights(y, 'released').numpy(), w * 5, atol=1e-5)
    known = rng.random(y.shape) < .7 if holes else np.ones(y.shape, bool)
    p = 1 / (1 + np.exp(-z))
    cells = -(y * np.log(p) + (1 - y) * np.log1p(-p)) * w
    expected = cells[known].sum() / np.broadcast_to(w, y.shape)[known].sum()
    labels = torch.tensor(np.where(known, y, np.nan))
    assert math.isclose(weighted_bce(torch.tensor(z), labels, torch.tensor(w)).item(), expected, rel_tol=1e-5)
    assert math.isclose(weighted_bce(torch.tensor(z), labels, torch.tensor(w * 5), 'mean').item(), expected, rel_tol=1e-5)
    if not holes: assert math.isclose(expected, cells.sum(1).mean(), rel_tol=1e-12)            # Eq. 1 as printed


def test_rates_that_have_no_inverse():
    for column in ([0., 0.], [np.nan, np.nan]):
        labels = np.array([column, [1., 0.]]).T
        with pytest.raises(ValueError, match=r'in the 2 frames of training: column 0\. .*class_weights=None'): au_weights(labels)
        with pytest.raises(ValueError, match=r'training: AU4\. '): au_weights(labels, names=['AU4', 'AU12'])


def named(faces, name, aus, **labels):
    "The same faces as another set that codes these AUs, with labels of our own."
    frames = faces.frames[['subject', 'video', 'frame', *(f'AU{a}' for a in aus)]].assign(**labels)
    return FaceSet(frames, faces.crops, faces.landmarks, replace(faces.card, name=name, aus=tuple(aus)))


def test_an_au_that_never_occurs_is_named_with_the_sets_that_code_it():
    a, b = blob_faces(**FACES), blob_faces(**FACES, seed=1)
    with pytest.raises(ValueError, match=r'frames of training: AU12 \(coded in bp4d\)'): tiny(features='resnet18').fit(named(a, 'bp4d', (4, 12), AU12=0.))
    one = mix([named(a, 'bp4d', (4,)), named(b, 'disfa', (4, 12), AU12=0.)])
    with pytest.raises(ValueError, match=r'frames of training: AU12 \(coded in disfa\)'): tiny(features='resnet18').fit(one)
    both = mix([named(a, 'bp4d', (4, 12), AU12=0.), named(b, 'disfa', (12,), AU12=0.)])
    with pytest.raises(ValueError, match=r'AU12 \(coded in bp4d and disfa\)'): tiny(features='resnet18').fit(both)
    model = tiny(features='resnet18', class_weights=None, epochs=1).fit(named(a, 'bp4d', (4, 12), AU12=0.))       # the remedy
    assert model.module_.class_weights.tolist() == [.5, .5]


# ---- estimators ---------------------------------------------------------------------------------------------------------------------------------------

FACES = dict(subjects=4, frames=8, size=32)


def tiny_base(**changes):
    return FANLandmarks(**{**dict(width=.0625, depth=3, corpus=None, trainer=landmark_trainer(epochs=1, progress=False)), **changes})


@pytest.fixture(scope='module')
def eyes(tmp_path_factory):
    "Folder of a trained base: what stands on it needn't train it again."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('eyes') / 'base'
    tiny_base().fit(blob_faces(**FACES)).save(folder)
    return str(folder)


def tiny(**changes):
    trainer = aunet_trainer(epochs=changes.pop('epochs', 2), batch_size=16, lr=1e-2, progress=False, selection='last')
    own = {} if changes.get('features') == 'resnet18' or changes.get('base_model') else {'base': tiny_base()}
    return AUNet(**{**dict(width=.125, interval=2, latent=2, vae_epochs=3, trainer=trainer), **own, **changes})


VARIANTS = {'AU-FAN': {}, 'AU-VAE': {'vae': True}, 'AU-TDN': {'motion': 'tdn'}, 'AUNet': {'vae': True, 'motion': 'tdn'}, 'flow': {'motion': 'flow'},
            'ResNet18': {'features': 'resnet18'}, 'ResNet18-A': {'features': 'resnet18', 'vae': True, 'motion': 'tdn'}}


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_trains_saves_and_loads(tmp_path, eyes, name):
    faces, variant = blob_faces(**FACES), VARIANTS[name]
    if variant.get('features') != 'resnet18': variant = {**variant, 'base_model': eyes}
    model = tiny(**variant).fit(faces)
    scores = model.predict_scores(faces)
    assert scores.shape == (len(faces), 5) and scores[faces.columns].to_numpy().min() >= 0 and scores[faces.columns].to_numpy().max() <= 1
    model.save(tmp_path / 'm')
    assert AUEstimator.load(tmp_path / 'm').predict_scores(faces).equals(scores)
    again = tiny(**variant).fit(faces)
    assert again.predict_scores(faces).equals(scores)                       # bit for bit


def test_the_eyes_never_change(tmp_path):
    faces = blob_faces(**FACES)
    base = tiny_base().fit(faces)
    before = {k: v.clone() for k, v in base.module_.state_dict().items()}
    base.save(tmp_path / 'base')
    for variant in ({'vae': True, 'motion': 'tdn'}, {'motion': 'flow'}):
        model = tiny(base=None, base_model=str(tmp_path / 'base'), **variant).fit(faces)
        after = {k.removeprefix('trunk.net.'): v for k, v in model.module_.state_dict().items() if k.startswith('trunk.net.')}
        assert after.keys() == before.keys() and all(torch.equal(v, after[k]) for k, v in before.items())     # running means and counters too
        assert not any(p.requires_grad for p in model.module_.trunk.parameters())
    trained = tiny().fit(faces).module_.trunk.net.state_dict()              # trained on the way: the same to the bit
    assert all(torch.equal(v, trained[k]) for k, v in before.items())


def test_gradients_of_the_regulariser_reach_the_classifier_only(eyes):
    faces = blob_faces(**FACES)
    model = tiny(vae=True, base_model=eyes).fit(faces)
    module = model.module_.train()
    (_, vae), = model.vaes_.values()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    for q in (*vae.parameters(), *module.parameters()): q.grad = None
    labels = torch.tensor(faces.labels()[:16])
    p = module(torch.rand(16, 3, 32, 32)).sigmoid()
    model._consistency(p, labels, None).backward()
    assert all(q.grad is None for q in vae.parameters()) and all(q.grad is None for q in module.trunk.parameters())
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for n, q in module.head.named_parameters() if n.startswith(('fc', 'reduce')))
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items()) and not vae.training


def test_each_option_changes_something(eyes):
    faces, starts = blob_faces(**FACES), {'': {}, 'vae': {'vae': True}, 'tdn': {'motion': 'tdn'}}
    scores = lambda **options: tiny(epochs=1, base_model=eyes, **options).fit(faces).predict_scores(faces)[faces.columns].to_numpy()
    first = {n: scores(**v) for n, v in starts.items()}
    for start, options in (('', dict(source='paper', attention=False, head_norm=False, class_weights=None, hidden=16, flip_test=False)),
                           ('vae', dict(gamma=3., latent=1, kl_weight=3., second_term='released', space='label', label_noise=0., vae_epochs=6)),
                           ('tdn', dict(interval=1, alpha=.5, beta=.5, difference_sign='released'))):
        for name, value in options.items():
            assert not np.array_equal(scores(**starts[start], **{name: value}), first[start]), f'{name}={value} does nothing'


def test_wrong_options_and_bases_are_refused(eyes):
    faces = blob_faces(**FACES)
    for change, words in (({'features': 'vgg'}, "features is 'vgg'"), ({'motion': 'lstm'}, "motion is 'lstm'"), ({'features': 'resnet18', 'motion': 'flow'}, 'for frozen features'),
                          ({'weights': 'imagenet'}, 'base__weights')):
        with pytest.raises(ValueError, match=words): tiny(**change).fit(faces)
    given = eyes
    with pytest.raises(ModelFileError, match='32 px crops, but the faces are 40 px'): tiny(base=None, base_model=given).fit(blob_faces(subjects=2, frames=4, size=40))
    with pytest.raises(ModelFileError, match='other parameters'): tiny(base=tiny_base(sigma=2.), base_model=given).fit(faces)
    with pytest.raises(ModelFileError, match='holds a FANLandmarks'): tiny(features='parsing', base=None, base_model=given).fit(faces)
    with pytest.raises(ValueError, match='come from a FaceParsing'): tiny(features='parsing').fit(faces)


def test_stages_are_runs_of_their_own():
    assert isinstance(AUNet().base_in_use(), FANLandmarks) and isinstance(AUNet(features='parsing').base_in_use(), FaceParsing)
    assert not hasattr(AUNet(features='resnet18'), 'base_in_use')
    assert AUNet().set_params(base__width=.5).base_in_use().width == .5
    assert isinstance(AUNet().set_params(features='parsing', base__width=.5).base, FaceParsing)
    assert FANLandmarks().fold_free and not FANLandmarks(corpus=None).fold_free and FaceParsing().fold_free


def test_landmark_run_is_no_au_run(tmp_path):
    faces = blob_faces(**FACES)
    model = tiny_base().fit(faces)
    table, errors = model.predict_scores(faces), model.evaluate(faces)
    assert list(table)[:5] == ['subject', 'video', 'frame', 'x0', 'y0'] and len(table.columns) == 3 + 136
    assert np.allclose(table.iloc[:, 3:].to_numpy().reshape(-1, 68, 2), model.predict_landmarks(faces))
    kinds = ('nme', 'failure_rate', 'auc', 'nme_mean_face', 'auc_mean_face')
    assert set(errors) == {'n', *kinds, *(f'{k}_moved' for k in kinds)}
    assert errors['nme_mean_face'] < 1e-6 < .03 < errors['nme_mean_face_moved']              # blobs share one shape, until they are moved
    model.save(tmp_path / 'm')
    assert AUEstimator.load(tmp_path / 'm').predict_scores(faces).equals(table)


def test_public_weights_make_a_base_without_training(tmp_path):
    faces = blob_faces(**FACES)
    file = save_fan(FAN(2, 'avg', width=.0625, depth=3), tmp_path / 'fan.safetensors')
    base = FANLandmarks(weights=str(file)).fit(faces)
    assert (base.pooling, base.width, base.depth, len(base.history_)) == ('avg', .0625, 3, 0)
    base.save(tmp_path / 'base')
    model = tiny(base=None, base_model=str(tmp_path / 'base')).fit(faces)
    assert model.module_.trunk.net.pooling == 'avg'
    assert FANLandmarks(weights=str(file)).fold_free


def test_mixture_has_a_vae_for_each_set(eyes):
    a, b = blob_faces(**FACES), blob_faces(**FACES, seed=1)
    faces = mix({'bp4d': a, 'other': named(b, 'other', (12,))})
    model = tiny(vae=True, latent={'bp4d': 2, 'other': 1}, base_model=eyes).fit(faces)
    assert {k: columns for k, (columns, _) in model.vaes_.items()} == {'bp4d': [0, 1], 'other': [1]}
    sets = model.derive(faces)['set']
    assert [list(model.vaes_)[i] for i in sets] == faces.frames['subject'].str.split('/').str[0].tolist()
    assert np.isfinite(model.predict_scores(faces)[faces.columns].to_numpy()).all()


def test_flow_points_where_things_went():
    rng = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter, shift
    picture = gaussian_filter(rng.random((64, 64)), 2)
    picture = (picture - picture.min()) / np.ptp(picture)
    frames = np.stack([shift(picture, (0, -2), order=1, mode='nearest'), picture, shift(picture, (3, 0), order=1, mode='nearest')])
    flow = flow_maps(torch.tensor(frames, dtype=torch.float32)[None, :, None].expand(1, 3, 3, 64, 64))[0, :, 16:48, 16:48].mean((1, 2)) * 64
    assert torch.allclose(flow, torch.tensor([-2., 0, 0, 3]), atol=.5)


# ---- parsing ------------------------------------------------------------------------------------------------------------------------------------------

def test_parsing_network_differs_in_its_maps_only():
    own, landmarks = ParsingNet(width=.0625), FAN(2, width=.0625)
    a, b = own.state_dict(), landmarks.state_dict()
    assert a.keys() == b.keys() and {k for k in a if a[k].shape != b[k].shape} == {'l0.weight', 'l0.bias', 'l1.weight', 'l1.bias', 'al0.weight'}
    heat = torch.zeros(1, len(REGIONS), 4, 4)
    assert torch.allclose(own.attention(heat), torch.full((1, 1, 4, 4), len(PARTS) / len(REGIONS)))


def test_region_shares_and_scores_against_loops():
    rng = np.random.default_rng(0)
    regions = rng.integers(0, len(REGIONS), (3, 8, 8))
    shares = region_shares(torch.tensor(regions), 2)
    for r in range(len(REGIONS)):
        for i in range(2):
            for j in range(2): assert math.isclose(shares[1, r, i, j].item(), (regions[1, 4 * i:4 * i + 4, 4 * j:4 * j + 4] == r).mean(), abs_tol=1e-6)
    found = np.where(rng.random(regions.shape) < .7, regions, 0)
    scores = region_scores(found, regions)
    for i, name in enumerate(REGIONS): assert math.isclose(scores[name], np.sum((found == i) & (regions == i)) / np.sum((found == i) | (regions == i)))


def test_network_takes_other_eyes():
    torch.manual_seed(0)
    net = AUNetwork(FrozenTrunk(ParsingNet(width=.0625)), AUHead(48, 2, 16, hidden=8)).train()
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 2) and aunet_estimator.FEATURES == ('fan', 'parsing', 'resnet18')
