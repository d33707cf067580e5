"""Scoring across notebooks: the same numbers by different roads, and against scikit-learn, on random tables with missing cells."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import au_study.scoring as scoring
from au_study.faces.frames import KEYS, check_frames, occurrence
from au_study.scoring import abaw_score, bootstrap_f1, counts_by_subject, f1_intervals, f1_micro, f1_table, icc31, intensity_table
from au_study.scoring import paired_bootstrap_f1, paired_f1_table


def tables(seed, n=300, k=4, missing=.2, subjects=7):
    """Truth and scores with unlabelled cells, ties in the scores, an AU that is rare and one that is frequent."""
    r = np.random.default_rng(seed)
    keys = pd.DataFrame(dict(subject=np.sort(r.choice([f"s{i}" for i in range(subjects)], n)),
                             video=np.where(r.random(n) < .5, "T1", "T2"), frame=np.arange(n)))
    y = (r.random((n, k)) < r.uniform(.02, .9, k)).astype(float)
    s = np.round(np.clip(.3 * y + .7 * r.random((n, k)), 0, 1), 2)
    y[r.random((n, k)) < missing] = np.nan
    columns = [f"AU{i}" for i in (1, 2, 12, 25)[:k]]
    return tuple(check_frames(pd.concat([keys, pd.DataFrame(v, columns=columns)], axis=1), kind=kind)
                 for v, kind in ((y, "occurrence"), (s, "score")))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [.3, .5, .9])
def test_f1_table_agrees_with_scikit_learn(seed, threshold):
    truth, scores = tables(seed)
    ours = f1_table(truth, scores, threshold=threshold)
    for au in ours.index.drop("Avg"):
        m = truth[au].notna()
        y, s = truth.loc[m, au].astype(int), scores.loc[m, au]
        d = (s >= threshold).astype(int)
        assert ours.loc[au, "f1"] == pytest.approx(sk.f1_score(y, d, zero_division=0))
        assert ours.loc[au, "precision"] == pytest.approx(sk.precision_score(y, d, zero_division=0))
        assert ours.loc[au, "recall"] == pytest.approx(sk.recall_score(y, d, zero_division=0))
        assert ours.loc[au, "accuracy"] == pytest.approx(sk.accuracy_score(y, d))
        assert ours.loc[au, "auc"] == pytest.approx(sk.roc_auc_score(y, s))
        assert ours.loc[au, "prevalence"] == pytest.approx(y.mean())
        assert ours.loc[au, "f1_always_positive"] == pytest.approx(sk.f1_score(y, np.ones_like(y)))
        assert ours.loc[au, "n"] == m.sum()
    assert ours.loc["Avg", "f1"] == pytest.approx(ours["f1"].drop("Avg").mean())


@pytest.mark.parametrize("seed", range(4))
def test_roads_to_the_same_counts(seed):
    truth, scores = tables(seed)
    counts = counts_by_subject(truth, scores)
    total = counts.groupby(level="au", sort=False).sum()
    table = f1_table(truth, scores)
    aus = table.index.drop("Avg")
    np.testing.assert_allclose(2 * total.tp / (2 * total.tp + total.fp + total.fn), table.loc[aus, "f1"])
    assert (total.sum(axis=1) == table.loc[aus, "n"]).all()
    c = total.sum()
    assert f1_micro(truth, scores) == pytest.approx(2 * c.tp / (2 * c.tp + c.fp + c.fn))
    result = abaw_score(truth, scores)
    assert result["f1"] == pytest.approx(table.loc["Avg", "f1"])
    assert result["accuracy_cell"] == pytest.approx((c.tp + c.tn) / c.sum())
    assert result["accuracy_exact"] <= result["accuracy_cell"]
    assert bootstrap_f1(truth, scores, n_boot=50).value == pytest.approx(table.loc["Avg", "f1"])
    for unit in ("subject", "video", "frame"):
        np.testing.assert_allclose(f1_intervals(truth, scores, n_boot=50, unit=unit)["f1"], table["f1"])


def test_row_order_and_column_order_do_not_matter():
    truth, scores = tables(3)
    shuffled = scores.sample(frac=1, random_state=1)[[*KEYS, *reversed(scores.columns[3:])]]
    pd.testing.assert_frame_equal(f1_table(truth, scores), f1_table(truth, shuffled))
    assert bootstrap_f1(truth, scores, n_boot=200) == bootstrap_f1(truth, shuffled, n_boot=200)
    folds = {s: i % 3 for i, s in enumerate(truth["subject"].unique())}
    by_column = f1_table(truth, shuffled.assign(fold=shuffled["subject"].map(folds)), by="fold")
    pd.testing.assert_frame_equal(by_column, f1_table(truth, scores, by=folds))


def test_fold_average_is_the_mean_of_the_folds():
    truth, scores = tables(5)
    folds = {s: i % 3 for i, s in enumerate(truth["subject"].unique())}
    parts = [f1_table(truth[m], scores[m]) for f in range(3) for m in [truth["subject"].map(folds) == f]]
    averaged = f1_table(truth, scores, by=folds)
    np.testing.assert_allclose(averaged["f1"], np.mean([p["f1"] for p in parts], axis=0))
    assert (averaged["f1"] - f1_table(truth, scores)["f1"]).abs().max() > 1e-3


def test_unlabelled_cells_take_part_in_nothing():
    truth, scores = tables(1)
    hidden = truth["AU1"].isna()
    changed = scores.assign(AU1=scores["AU1"].where(~hidden, 1 - scores["AU1"]))
    assert not changed.equals(scores)
    pd.testing.assert_frame_equal(f1_table(truth, scores), f1_table(truth, changed))
    assert abaw_score(truth, scores) == abaw_score(truth, changed)
    assert bootstrap_f1(truth, scores, n_boot=100) == bootstrap_f1(truth, changed, n_boot=100)


def test_weights_equal_resampling_rows():
    """A resample by multinomial weights is the F1 of a table in which the drawn subjects are really repeated."""
    from au_study.scoring.significance import _resampled, _unit_counts
    truth, scores = tables(2, subjects=5)
    counts, size, _ = _unit_counts(truth, [scores], .5, None, "subject")
    ours = _resampled(counts, size, 6, seed=9)[:, 0]
    weights = np.random.default_rng(9).multinomial(5, np.full(5, .2), size=6)
    names = truth["subject"].unique()
    for w, row in zip(weights, ours):
        copies = [t[t.subject == s].assign(video=t.video + f"-{i}") for t in (truth, scores) for s, n in zip(names, w) for i in range(n)]
        half = len(copies) // 2
        np.testing.assert_allclose(f1_table(pd.concat(copies[:half]), pd.concat(copies[half:]))["f1"], row)


def test_paired_difference_matches_single_intervals():
    truth, a = tables(4)
    b = a.assign(AU1=1 - a["AU1"])
    table = paired_f1_table(truth, a, b, n_boot=300)
    assert table.loc["AU2", "difference"] == 0 and table.loc["AU2", "p"] == 1
    assert table.loc["AU1", "f1_a"] == pytest.approx(f1_table(truth, a).loc["AU1", "f1"])
    one = paired_bootstrap_f1(truth, a, b, au="AU1", n_boot=300)
    assert [one.low, one.high] == pytest.approx(table.loc["AU1", ["low", "high"]].tolist())
    back = paired_bootstrap_f1(truth, b, a, au="AU1", n_boot=300)
    assert [back.low, back.high] == pytest.approx([-one.high, -one.low])


def test_swap_test_keeps_its_level():
    """Two unequal tables, exchanged at random within subjects, are equal methods: p < 0.1 must come about one time in ten."""
    p = []
    for seed in range(60):
        truth, a = tables(seed, n=120, k=1, subjects=12)
        b = a.assign(AU1=np.random.default_rng(seed).permutation(a["AU1"].to_numpy()))
        coin = np.random.default_rng(seed + 99)
        swap = {s: coin.random() < .5 for s in truth["subject"].unique()}
        m = truth["subject"].map(swap)
        p.append(paired_f1_table(truth, a.where(~m, b), b.where(~m, a), n_boot=200).loc["AU1", "p"])
    assert .01 < np.mean(np.array(p) < .1) < .22 and .35 < np.mean(p) < .65


@pytest.mark.filterwarnings("ignore:AU1. auc is undefined")
def test_every_door_refuses_bad_tables():
    truth, scores = tables(0)
    doors = [f1_table, f1_micro, abaw_score, bootstrap_f1, f1_intervals, intensity_table, counts_by_subject,
             lambda t, s: paired_bootstrap_f1(t, scores, s), lambda t, s: paired_f1_table(t, s, scores)]
    for door in doors:
        with pytest.raises(ValueError, match="not in the score table, the first is subject"): door(truth, scores[5:])
        with pytest.raises(ValueError, match="is nan; every frame needs a finite score"): door(truth, scores.assign(AU2=np.nan))
        with pytest.raises(ValueError, match="name the AUs to score with aus="): door(truth, scores.drop(columns="AU1"))
    intensities = truth.assign(AU1=3.0)
    with pytest.raises(ValueError, match="turn intensities into occurrence first"): f1_table(intensities, scores)
    assert f1_table(occurrence(intensities, 1), scores.assign(AU1=.9)).loc["AU1", "f1"] == 1


def test_icc_of_two_raters_is_a_scaled_covariance():
    r = np.random.default_rng(0)
    for _ in range(20):
        x, y = r.normal(size=(2, 30)).cumsum(axis=0)
        assert icc31(x, y) == pytest.approx(2 * np.cov(x, y)[0, 1] / (x.var(ddof=1) + y.var(ddof=1)))
        assert icc31(x, y) <= np.corrcoef(x, y)[0, 1] + 1e-12 or np.corrcoef(x, y)[0, 1] < 0
        assert icc31(x, y + 3) == pytest.approx(icc31(x, y))


def test_intensity_table_masks_and_averages():
    truth, scores = tables(6)
    truth = truth.assign(AU1=truth["AU1"] * 5, AU12=np.nan)
    with pytest.warns(UserWarning, match="AU12: icc31 is undefined"): table = intensity_table(truth, scores)
    m = truth["AU1"].notna()
    assert table.loc["AU1", "mae"] == pytest.approx(sk.mean_absolute_error(truth.loc[m, "AU1"], scores.loc[m, "AU1"]))
    assert table.loc["AU1", "mse"] == pytest.approx(sk.mean_squared_error(truth.loc[m, "AU1"], scores.loc[m, "AU1"]))
    assert table.loc["Avg", "mae"] == pytest.approx(table.loc[["AU1", "AU2", "AU25"], "mae"].mean())


def test_single_class_and_empty_aus():
    truth, scores = tables(7)
    truth = truth.assign(AU1=0.0, AU2=np.nan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = f1_table(truth, scores)
    assert table.loc["AU1", "f1"] == 0 and np.isnan(table.loc["AU1", "auc"]) and np.isnan(table.loc["AU2", "f1"])
    assert table.loc["Avg", "f1"] == pytest.approx(table.loc[["AU1", "AU12", "AU25"], "f1"].mean())
    assert {str(w.message).split(":")[0] for w in caught} == {"AU1", "AU2"}
    assert bootstrap_f1(truth, scores, n_boot=100).value == pytest.approx(table.loc["Avg", "f1"])
    with pytest.raises(ValueError, match="No labelled frame is left for AU2"): abaw_score(truth, scores)


def test_everything_public_is_exported():
    assert all(hasattr(scoring, name) for name in scoring.__all__)
