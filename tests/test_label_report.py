"Statistics of labels against slow, independent computations: loops over frames, pandas and scikit-learn."
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.class_weight import compute_class_weight

from au_study.faces.frames import FrameTableError
from au_study.study.cli import main
from au_study.study.label_report import all_segments, au_table, class_weights, label_report, video_steps

AUS = (1, 4, 12)


def some_labels(seed, top=1, unlabelled=0.15):
    "Videos of several steps and lengths, with gaps, runs, unlabelled cells, in no order."
    rng, parts = np.random.default_rng(seed), []
    for i, (step, n) in enumerate([(1, 60), (1, 45), (5, 40), (22, 30), (1, 2), (3, 1)]):
        frames = 7 + step * np.delete(np.arange(n + 3), [n // 3, n // 3 + 1, n // 2][: min(3, n)])
        sticky = rng.random((len(frames), len(AUS))) < 0.25
        values = rng.integers(0, top + 1, (len(frames), len(AUS))).astype(float)
        for t in range(1, len(frames)): values[t] = np.where(sticky[t], values[t], values[t - 1])
        values[rng.random(values.shape) < unlabelled] = np.nan
        parts.append(pd.DataFrame({"subject": f"P{i // 2}", "video": f"v{i % 2}", "frame": frames}).join(pd.DataFrame(values, columns=[f"AU{a}" for a in AUS])))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=seed)


def runs_by_hand(frames, column, threshold):
    "Lengths of runs, one frame after the other."
    found = []
    for _, video in frames.groupby(["subject", "video"]):
        video = video.sort_values("frame")
        numbers, values = video["frame"].tolist(), video[column].tolist()
        distances = [b - a for a, b in zip(numbers, numbers[1:])]
        step = min(set(distances), key=lambda d: (-distances.count(d), d)) if distances else 1
        length = 0
        for i, value in enumerate(values):
            if length and (np.isnan(value) or value < threshold or numbers[i] - numbers[i - 1] > step): found.append(length * step); length = 0
            if value >= threshold: length += 1
        if length: found.append(length * step)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("top, threshold", [(1, 1), (5, 1), (5, 2)])
def test_rates_and_durations_equal_a_loop(seed, top, threshold):
    frames = some_labels(seed, top)
    table = au_table(frames, threshold)
    for column in table.index:
        coded = frames[column].dropna()
        assert table.loc[column, "labelled"] == len(coded) and table.loc[column, "unlabelled"] == frames[column].isna().sum()
        assert table.loc[column, "base_rate"] == pytest.approx((coded >= threshold).mean())
        by_hand = runs_by_hand(frames, column, threshold)
        assert table.loc[column, "segments"] == len(by_hand)
        assert table.loc[column, "mean_duration"] == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize("seed", range(3))
def test_correlations_equal_pandas_and_numpy(seed):
    frames = some_labels(seed, 5)
    columns = [f"AU{a}" for a in AUS]
    report = label_report(frames, threshold=2)
    on = frames[columns].ge(2).astype(float).where(frames[columns].notna())
    np.testing.assert_allclose(report.pcc, on.corr(), atol=1e-9)
    np.testing.assert_allclose(report.pcc_intensity, frames[columns].corr(), atol=1e-9)
    both = on[["AU1", "AU12"]].dropna()
    assert report.pcc.loc["AU1", "AU12"] == pytest.approx(np.corrcoef(both["AU1"], both["AU12"])[0, 1])


def test_weights_follow_the_printed_formula_and_scikit_learn():
    rate = pd.Series({"AU1": 0.05, "AU4": 0.2, "AU12": 0.6})
    weights, inverse = class_weights(rate), 1 / rate
    np.testing.assert_allclose(weights["weight"], inverse / inverse.sum())
    np.testing.assert_allclose(weights["weight_mean1"], 3 * inverse / inverse.sum())
    labels = np.repeat([0, 1], [80, 20])
    off, on = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert weights.loc["AU4", "pos_weight"] == pytest.approx(on / off)


def test_steps_are_a_fact_of_each_video():
    assert sorted(video_steps(some_labels(0)).tolist()) == [1, 1, 1, 3, 5, 22]
    one = all_segments(some_labels(0), 1, step=1)
    assert (one["duration"] == one["length"]).all()


def test_empty_and_constant_labels():
    frames = pd.DataFrame({"subject": "a", "video": "v", "frame": range(4), "AU1": 1.0, "AU2": 0.0, "AU4": np.nan})
    report = label_report(frames)
    assert report.aus.loc["AU1", "mean_duration"] == 4 and np.isnan(report.aus.loc["AU2", "weight"]) and np.isnan(report.aus.loc["AU4", "base_rate"])
    np.testing.assert_array_equal(report.pcc, np.eye(3))
    with pytest.raises(FrameTableError, match="no row"): label_report(frames[:0])


def test_command_reads_csv_and_parquet(tmp_path, capsys):
    frames = some_labels(1).fillna(9)
    frames.to_csv(tmp_path / "é labels.csv", index=False)
    assert main(["stats", str(tmp_path / "é labels.csv")]) == 2
    assert "--unlabelled 9" in capsys.readouterr().err
    assert main(["stats", str(tmp_path / "é labels.csv"), "--unlabelled", "9", "--out", str(tmp_path / "out"), "--beside", "bp4d"]) == 0
    written = pd.read_csv(tmp_path / "out/aus.csv", index_col="AU")
    expected = au_table(some_labels(1), 1)
    np.testing.assert_allclose(written["base_rate"], expected["base_rate"])
    assert written.loc["AU12", "mean_duration (published)"] == 184 and (tmp_path / "out/stats.html").exists()
    some_labels(1).to_parquet(tmp_path / "labels.parquet")
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "labels.parquet"), "--aus", "12"]) == 0
    said = capsys.readouterr().out
    assert f"{expected.loc['AU12', 'base_rate']:.4f}" in said and "AU4" not in said


@pytest.mark.parametrize("content, words", [
    ("subject,video,AU1\na,v,1\n", "frame"), ("subject,video,frame,AU1\na,v,1,x\n", "AU1"), ("subject,video,frame,AU1\na,v,1,1\na,v,1,0\n", "more than once"), ("", ""),
    ("subject,video,frame,au01_r\na,v,1,1\n", "'AU1'"), ("subject,video,frame,AU1\na,v,1,-1\n", "--unlabelled -1")])
def test_broken_tables_end_in_a_sentence(tmp_path, capsys, content, words):
    (tmp_path / "broken.csv").write_text(content)
    assert main(["stats", str(tmp_path / "broken.csv")]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.startswith("au-study: ")


def test_a_saved_faceset_is_a_source(tmp_path, capsys):
    from au_study.training.batches import blob_faces
    faces = blob_faces(4, 6, seed=1)
    faces.save(tmp_path / "faces")
    assert main(["stats", str(tmp_path / "faces")]) == 0
    assert json.loads((tmp_path / "faces/card.json").read_text())["title"] in capsys.readouterr().out
