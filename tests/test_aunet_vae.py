"""AUNet's label VAE and temporal difference against references written from the equations, in double precision."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from au_study.aunet.label_vae import LabelVAE, consistency_loss, fit_label_vae, kl_to_normal, reconstruction_loss, vae_loss
from au_study.aunet.network import au_weights, weighted_bce
from au_study.aunet.temporal_difference import TemporalDifference, align_neighbours, five_points

SIZES = [(12, 8), (8, 6), (8, 5), (3, 1)]


def numbers(*shape, seed=0): return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def vae_of(K, D, seed=0):
    vae = LabelVAE(K, D).double()
    with torch.no_grad():
        for i, p in enumerate(vae.parameters()): p.copy_(.7 * numbers(*p.shape, seed=100 * seed + i))
        vae.rates.copy_(torch.linspace(.1, .9, K, dtype=torch.float64))
    return vae


def encoder(vae, y):
    "Means and variances of the code, row by row, in plain loops."
    w = {k: v.detach().numpy() for k, v in vae.state_dict().items()}
    y = np.where(np.isnan(y), w["rates"], y)
    h = np.array([[max(0., sum(w["enter.weight"][d, k] * row[k] for k in range(len(row))) + w["enter.bias"][d]) for d in range(len(w["enter.bias"]))] for row in y])
    mu = h @ w["mu.weight"].T + w["mu.bias"]
    return mu, np.exp(h @ w["logvar.weight"].T + w["logvar.bias"])


def logits_of(vae, z):
    w = {k: v.detach().numpy() for k, v in vae.state_dict().items()}
    return np.maximum(z @ w["leave.weight"].T + w["leave.bias"], 0) @ w["logits.weight"].T + w["logits.bias"]


def decoder(vae, z): return 1 / (1 + np.exp(-logits_of(vae, z)))


def probabilities(B, K, seed=1): return torch.from_numpy(np.random.default_rng(seed).uniform(size=(B, K)))


def labels(B, K, seed=2): return torch.from_numpy((np.random.default_rng(seed).uniform(size=(B, K)) < .4).astype(float))


@pytest.mark.parametrize("K, D", SIZES)
def test_consistency_loss_is_equation_3(K, D):
    vae, p, g = vae_of(K, D), probabilities(7, K), labels(7, K)
    (mp, sp), (mg, sg) = encoder(vae, p.numpy()), encoder(vae, g.numpy())
    wanted = (((mp - mg) ** 2).sum(1) + ((sp - sg) ** 2).sum(1)).mean()
    assert consistency_loss(vae, p, g).item() == pytest.approx(wanted, rel=1e-10)
    released = ((mp - mg) ** 2).mean() + np.sqrt(sp).mean()
    assert consistency_loss(vae, p, g, second_term="released").item() == pytest.approx(released, rel=1e-10)
    space = ((decoder(vae, mp) - decoder(vae, mg)) ** 2).sum(1).mean()
    assert consistency_loss(vae, p, g, space="label").item() == pytest.approx(space, rel=1e-10)
    assert consistency_loss(vae, p, g, gamma=3.).item() == pytest.approx(3 * wanted, rel=1e-10)


@pytest.mark.parametrize("options", [{}, {"second_term": "released"}, {"space": "label"}])
def test_consistency_loss_leaves_out_what_nobody_coded(options):
    vae, p, g = vae_of(12, 8), probabilities(6, 12), labels(6, 12)
    g[2] = math.nan
    g[0, 3] = g[4, :7] = math.nan
    filled = p.numpy().copy()
    filled[np.isnan(g.numpy())] = np.broadcast_to(vae.rates.numpy(), (6, 12))[np.isnan(g.numpy())]
    seen = np.isfinite(g.numpy()).any(1)
    if not options:
        (mp, sp), (mg, sg) = encoder(vae, filled[seen]), encoder(vae, g.numpy()[seen])
        assert consistency_loss(vae, p, g).item() == pytest.approx((((mp - mg) ** 2).sum(1) + ((sp - sg) ** 2).sum(1)).mean(), rel=1e-10)
    p.requires_grad_(True)
    consistency_loss(vae, p, g, **options).backward()
    assert (p.grad[torch.isnan(g)] == 0).all() and (p.grad[~torch.isnan(g)] != 0).any()
    assert consistency_loss(vae, p, torch.full_like(g, math.nan), **options).item() == 0


@pytest.mark.parametrize("options", [{}, {"second_term": "released"}, {"space": "label"}])
def test_gradients_reach_the_classifier_only(options):
    classifier, vae = nn.Linear(5, 12).double(), vae_of(12, 8)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    loss = consistency_loss(vae, classifier(numbers(9, 5)).sigmoid(), labels(9, 12), **options)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in classifier.parameters())
    assert all(p.grad is None for p in vae.parameters()) and all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"second_term": "released"}, {"space": "label"}])
def test_gradient_of_the_consistency_loss_by_differences(options):
    vae, g = vae_of(6, 4), labels(3, 6)
    p = (probabilities(3, 6) * .8 + .1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda q: consistency_loss(vae, q, g, **options), (p,), atol=1e-5)


def test_divergence_is_the_integral():
    mu, logvar = torch.tensor([[.3], [-1.2], [0.]], dtype=torch.float64), torch.tensor([[.5], [-.7], [0.]], dtype=torch.float64)
    x = np.linspace(-14, 14, 200001)
    for m, lv, value in zip(mu[:, 0], logvar[:, 0], kl_to_normal(mu, logvar)):
        s = math.exp(lv / 2)
        q = np.exp(-(x - float(m)) ** 2 / (2 * s * s)) / (s * math.sqrt(2 * math.pi))
        log_ratio = -(x - float(m)) ** 2 / (2 * s * s) - math.log(s) + x ** 2 / 2
        assert float(value) == pytest.approx(np.trapezoid(q * log_ratio, x), abs=1e-9)
    both = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    assert torch.allclose(kl_to_normal(mu, logvar), both.sum(1))


def test_equation_2():
    vae, y = vae_of(12, 8), labels(10, 12)
    y[3, 4] = math.nan
    loss = vae_loss(vae, y, .2, .3, torch.Generator().manual_seed(5)).item()
    g = torch.Generator().manual_seed(5)
    noisy = y.numpy() + (2 * torch.rand(y.shape, generator=g).double().numpy() - 1) * .2
    mu, var = encoder(vae, noisy)
    z = logits_of(vae, mu + np.sqrt(var) * torch.randn(10, 8, generator=g).double().numpy())
    cells = np.logaddexp(0, np.where(y.numpy() == 1, -z, z))
    cells[np.isnan(y.numpy())] = 0
    kl = .5 * (mu ** 2 + var - 1 - np.log(var)).sum(1)
    assert loss == pytest.approx((cells.sum(1) + .3 * kl).mean(), rel=1e-9)
    assert torch.allclose(reconstruction_loss(numbers(4, 3), torch.full((4, 3), math.nan)), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("scaling, reduction", [("paper", "sum"), ("released", "mean")])
def test_weighted_cross_entropy_is_equation_1(scaling, reduction):
    y, logits = labels(50, 12), numbers(50, 12, seed=4)
    rates = y.numpy().mean(0)
    w = (1 / rates) / (1 / rates).sum()
    p = 1 / (1 + np.exp(-logits.numpy()))
    wanted = -(w * (y.numpy() * np.log(p) + (1 - y.numpy()) * np.log(1 - p))).sum(1).mean()
    weights = au_weights(y, scaling)
    assert weights.sum().item() == pytest.approx(1 if scaling == "paper" else 12, rel=1e-6)
    assert weighted_bce(logits, y, weights, reduction).item() == pytest.approx(wanted, rel=1e-5)


def test_vae_learns_who_goes_with_whom():
    rng = np.random.default_rng(0)
    first = rng.uniform(size=(600, 1)) < .5
    y = np.concatenate([first, first, ~first, rng.uniform(size=(600, 1)) < .5], 1).astype(np.float32)
    vae = fit_label_vae(y, 2, epochs=60, lr=.02)
    possible, odd = np.array([[1, 1, 0, 1]], np.float32), np.array([[1, 0, 0, 1]], np.float32)
    with torch.no_grad(): seen = [vae.decode(vae.latent(torch.from_numpy(v))).sigmoid().numpy()[0] for v in (possible, odd)]
    assert (seen[0][:2] > .8).all() and seen[0][2] < .2
    assert abs(seen[1][0] - seen[1][1]) < .3          # one of the twins alone is not something the code can hold
    assert not any(p.requires_grad for p in vae.parameters())


def test_a_fit_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    fit_label_vae(np.eye(4, dtype=np.float32), 2, epochs=1, seed=3)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("sign", ["paper", "released"])
def test_temporal_difference_layer_by_layer(sign):
    net = TemporalDifference(6, 8, .7, .4, sign).double().eval()
    f = numbers(2, 3, 6, 8, 8, seed=9)
    one = lambda layer, x: np.einsum("oc,bchw->bohw", layer.weight.detach().numpy()[:, :, 0, 0], x) + layer.bias.detach().numpy()[None, :, None, None]
    halve = lambda x: x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2)
    double = lambda x: x.repeat(2, -1).repeat(2, -2)
    block = lambda b, x: b(torch.from_numpy(x)).detach().numpy()
    a = f.numpy()
    later = a[:, 1] - a[:, 2] if sign == "paper" else a[:, 2] - a[:, 1]
    d = one(net.motion, halve(np.concatenate([a[:, 1] - a[:, 0], later], 1)).mean((3, 5)))
    x = .7 * one(net.reduce, a[:, 1]) + .4 * double(d)
    x, d = halve(block(net.static_block, x)).max((3, 5)), halve(block(net.motion_block, d)).max((3, 5))
    assert np.allclose(net(f).detach().numpy(), .7 * x + .4 * double(d), atol=1e-12)


def test_aligned_neighbours_lie_on_the_middle_frame():
    rng = np.random.default_rng(0)
    middle = torch.from_numpy(rng.uniform(16, 48, (1, 68, 2)))
    angle, zoom, shift = .2, 1.1, torch.tensor([3., -2.], dtype=torch.float64)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64) * zoom
    marks = torch.stack([middle @ turn.T + shift, middle, (middle - shift) @ turn], 1)
    yy, xx = torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing="ij")
    bump = lambda p: torch.exp(-((xx - p[..., 0, None, None]) ** 2 + (yy - p[..., 1, None, None]) ** 2) / 18)
    images = torch.stack([bump(five_points(marks)[:, t].float()).amax(1) for t in range(3)], 1)[:, :, None].expand(-1, -1, 3, -1, -1)
    moved, points = align_neighbours(images, marks)
    assert torch.allclose(points, marks[:, 1:2].expand_as(points), atol=1e-6)
    before, after = ((c[:, [0, 2], :, 8:56, 8:56] - c[:, 1:2, :, 8:56, 8:56]).abs().mean() for c in (images, moved))
    assert after < before / 3 and torch.equal(moved[:, 1], images[:, 1])
