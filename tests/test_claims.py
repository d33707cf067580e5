"The ledger of claims: planted effects in a made store come back as verdicts, and never as more than the evidence bears."
import argparse
import json

import numpy as np
import pandas as pd
import pytest

from au_study.files import seal
from au_study.study import claims as C
from au_study.study.data import data_id, data_spec
from au_study.study.manifests import ManifestError, load_profile, load_study, study_names
from au_study.study.plan import Plan
from au_study.study.protocol import protocol_of
from au_study.study.runs import RunStore

STUDY = "au_rcnn_table5"
AUS = load_study(STUDY).protocol["aus"]
NAMES = [f"AU{a}" for a in AUS]
BETTER, EQUAL, WORSE, BASE = "AR_res", "AR_vgg16", "AR_vgg19", "CNN_res"     # what the made rows are


def frames(people, n=30):
    keys = [(f"P{p:02}", "a", f) for p in range(people) for f in range(n)]
    labels = (np.random.default_rng(3).random((len(keys), len(AUS))) < 0.4).astype(float)
    return pd.concat([pd.DataFrame(keys, columns=["subject", "video", "frame"]), pd.DataFrame(labels, columns=NAMES)], axis=1)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def made_store(root, errors, seeds=(0, 1, 2), people=16, folds=2, luck=0.0, profile="quick"):
    "A results folder with runs whose share of wrong cells is `errors[row]`; `luck` is the deviation of that share between trainings."
    spec = data_spec("bp4d", load_profile(profile))
    where, labels, protocol = root / "data" / data_id(spec), frames(people), protocol_of(load_study(STUDY).protocol)
    write(where / "data.json", {"id": data_id(spec), "fingerprint": "made", "synthetic": True})
    labels.to_parquet(where / "frames.parquet", index=False)
    plan = Plan(f"{profile}-world", profile, "world", data={data_id(spec): {"spec": spec}})
    rows = {}
    for r, (row, error) in enumerate(errors.items()):
        for seed in seeds:
            share = error + luck * np.random.default_rng([r, seed, 5]).standard_normal()
            for fold in range(folds):
                run = f"{row}-bp4d-f{fold}-s{seed}-{profile}-{r:010x}"
                part = labels[labels["subject"].str[1:].astype(int) % folds == fold]
                wrong = np.random.default_rng([r, seed, fold]).random((len(part), len(AUS))) < np.clip(share, 0, 0.9)
                scores = part.assign(**dict(zip(NAMES, np.where(wrong, 1 - part[NAMES], part[NAMES]).T)))
                write(root / "runs" / run / "run.json", {"protocol": protocol.content, "data": spec, "fold": fold, "seed": seed})
                write(root / "runs" / run / "metrics.json", {"fingerprint": "made", "code": "made"})
                scores.to_parquet(root / "runs" / run / "scores.parquet", index=False)
                plan.runs[run] = {"seed": seed, "fold": fold, "dataset": "bp4d"}
                rows.setdefault(row, []).append(run)
    plan.studies["made"] = {"study": STUDY, "rows": rows, "data": [data_id(spec)]}
    return plan, RunStore(root)


def ledger(tmp_path, **claims):
    "Claims of YAML texts, by name."
    text = "".join(f"  {name}:\n    where: Sec. 1\n    says: Something.\n" + "".join(f"    {line}\n" for line in body.strip().split("; ")) for name, body in claims.items())
    (tmp_path / "mine.yaml").write_text(f"paper: au_rcnn\nclaims:\n{text}")
    return C.read_claims(tmp_path / "mine.yaml")


def judged(plan, store, claims, n_boot=4000): return C.claims_table(plan, store, claims, n_boot).set_index("claim")


def compare(row, direction, more=""): return f"study: {STUDY}; row: {row}; minus: {BASE}; direction: {direction}" + (f"; {more}" if more else "")


PLANTED = {BASE: 0.3, BETTER: 0.15, EQUAL: 0.3, WORSE: 0.45}


# --- verdicts ------------------------------------------------------------------------------------------------------------------------

def test_planted_effects_come_back(tmp_path):
    claims = ledger(tmp_path, gain=compare(BETTER, "higher"), nothing=compare(EQUAL, "higher"), reversed=compare(WORSE, "higher"), loss=compare(WORSE, "lower"),
                    alike=compare(EQUAL, "equal", "margin: 5"), unlike=compare(BETTER, "equal", "margin: 5"), enough=compare(EQUAL, "not lower", "margin: 5"),
                    short=compare(WORSE, "not lower", "margin: 5"), close=compare(EQUAL, "equal", "margin: 0.05"))
    t = judged(*made_store(tmp_path / "r", PLANTED), claims)
    assert t["verdict"].to_dict() == {"gain": "supported", "nothing": "inconclusive", "reversed": "refuted", "loss": "supported", "alike": "supported", "unlike": "refuted",
                                      "enough": "supported", "short": "refuted", "close": "inconclusive"}
    assert (t["seeds"] == 3).all() and (t["folds"] == 2).all() and (t["subjects"] == 16).all() and (t["kind"] == "world").all()
    assert (t["low"] < t["effect"]).all() and (t["effect"] < t["high"]).all() and (t["p_holm"] >= t["p"]).all()
    assert t.loc["gain", "published"] == pytest.approx(63.0 - 60.9)


def test_the_effect_is_the_mean_over_seeds_of_the_pooled_f1(tmp_path):
    plan, store = made_store(tmp_path / "r", {BASE: 0.3, BETTER: 0.2}, seeds=(0, 4))
    found = judged(plan, store, ledger(tmp_path, it=compare(BETTER, "higher", "item: AU6")))["effect"].item()
    def f1(row, seed):   # written out, from the files
        parts = [pd.read_parquet(store.path(r) / "scores.parquet") for r in plan.studies["made"]["rows"][row] if plan.runs[r]["seed"] == seed]
        both = pd.concat(parts).merge(frames(16), on=["subject", "video", "frame"], suffixes=("", "_true"))
        x, y = both["AU6"] >= 0.5, both["AU6_true"] == 1
        return 200 * (x & y).sum() / (x.sum() + y.sum())
    assert found == pytest.approx(np.mean([f1(BETTER, s) - f1(BASE, s) for s in (0, 4)]), abs=1e-9)


def test_one_seed_is_never_support(tmp_path):
    t = judged(*made_store(tmp_path / "r", PLANTED, seeds=(0,)), ledger(tmp_path, gain=compare(BETTER, "higher"), reversed=compare(WORSE, "higher"), nothing=compare(EQUAL, "higher")))
    assert t["verdict"].to_dict() == {"gain": "agrees (one seed)", "reversed": "disagrees (one seed)", "nothing": "inconclusive"}
    assert t.loc["gain", "p_holm"] < 0.01 and t.loc["gain", "fill"] == f"au-study reproduce {STUDY} --profile quick --seeds 3"


def test_luck_of_trainings_widens_the_interval(tmp_path):
    claims = ledger(tmp_path, it=compare(EQUAL, "higher"))
    calm, lucky = (judged(*made_store(tmp_path / f"r{luck}", {BASE: 0.3, EQUAL: 0.3}, luck=luck), claims).iloc[0] for luck in (0.0, 0.08))
    assert lucky["high"] - lucky["low"] > 2 * (calm["high"] - calm["low"])


def test_false_findings_are_as_rare_as_promised():
    "Trainings that differ by luck, people who differ by difficulty, no effect: over six seeds about one test in twenty is wrong, from one seed most are."
    rng, wrong = np.random.default_rng(0), {1: 0, 6: 0}
    for _ in range(200):
        for seeds in wrong:
            e = 2 * rng.standard_normal(seeds)                                   # luck of each training
            people = rng.standard_normal((20, seeds)) + e                        # effect of each person under each seed
            weights = C.subject_weights(range(20), 800, str(rng.random()))
            p, _ = C.p_of(C.over_seeds(weights @ people / 20), C.region("higher"), 20)
            wrong[seeds] += p < 0.05
    assert wrong[1] > 100 and wrong[6] < 40


def test_holm_goes_over_all_lines_that_were_tested(tmp_path):
    store = made_store(tmp_path / "r", {BASE: 0.3, EQUAL: 0.27}, people=12)
    alone = judged(*store, ledger(tmp_path, a=compare(EQUAL, "higher")))
    many = judged(*store, ledger(tmp_path, a=compare(EQUAL, "higher"), **{f"n{a}": compare(EQUAL, "higher", f"item: AU{a}") for a in AUS}, lost=compare(BETTER, "higher")))
    assert alone.loc["a", "p_holm"] == alone.loc["a", "p"] == many.loc["a", "p"] < many.loc["a", "p_holm"]
    assert many.loc["lost", "verdict"] == "not run" and np.isnan(many.loc["lost", "p_holm"])


def test_few_people_cannot_support_anything(tmp_path):
    t = judged(*made_store(tmp_path / "r", {BASE: 0.45, BETTER: 0.05}, people=4), ledger(tmp_path, it=compare(BETTER, "higher")))
    assert t.loc["it", "low"] > 0 and t.loc["it", "p"] == 1 / 8 and t.loc["it", "verdict"] == "inconclusive"


# --- differences of differences, several items, other metrics ------------------------------------------------------------------------

def test_one_gain_may_be_larger_than_another(tmp_path):
    more = f"more_than: {{row: {EQUAL}, minus: {BASE}}}"
    claims = ledger(tmp_path, larger=compare(BETTER, "higher", more), smaller=compare(WORSE, "higher", more), none=compare(EQUAL, "higher", more))
    t = judged(*made_store(tmp_path / "r", PLANTED), claims)
    assert t["verdict"].to_dict() == {"larger": "supported", "smaller": "refuted", "none": "inconclusive"} and t.loc["none", "effect"] == 0
    assert "beyond" in t.loc["larger", "minus"]


def test_items_are_averaged(tmp_path):
    claims = ledger(tmp_path, both=compare(BETTER, "higher", "item: [AU1, AU24]"), one=compare(BETTER, "higher", "item: AU1"), other=compare(BETTER, "higher", "item: AU24"))
    t = judged(*made_store(tmp_path / "r", PLANTED), claims)["effect"]
    assert t["both"] == pytest.approx((t["one"] + t["other"]) / 2)


def test_another_metric(tmp_path):
    t = judged(*made_store(tmp_path / "r", PLANTED), ledger(tmp_path, it=compare(BETTER, "higher", "metric: abaw; item: accuracy")))
    assert t.loc["it", "unit"] == "score" and t.loc["it", "effect"] == pytest.approx(0.15, abs=0.02)


# --- rows that have learnt nothing ---------------------------------------------------------------------------------------------------

SHY, SHIER, BOLD = 0.55, 0.8, 0.2      # shares of wrong cells; "always yes" has F1 57 where 40 % of the cells are positive, the first two have less


def test_two_rows_below_always_yes_are_not_told_apart(tmp_path):
    "Whatever the direction, margin or no: what knows nothing is not better than what knows nothing, nor equal to it, nor a substitute."
    both = ledger(tmp_path, up=compare(BETTER, "higher"), down=compare(BETTER, "lower"), alike=compare(EQUAL, "equal", "margin: 5"), enough=compare(EQUAL, "not lower", "margin: 5"),
                  most=compare(EQUAL, "not higher", "margin: 5"), one=compare(BETTER, "higher", "item: AU6"), whole=compare(BETTER, "higher", "metric: abaw"))
    t = judged(*made_store(tmp_path / "r", {BASE: SHIER, BETTER: SHY, EQUAL: SHIER}), both)
    assert (t["verdict"] == "inconclusive").all() and (t["p"] < 0.05).all() and (t["fill"] == "").all()
    assert t.loc["up", "reason"] == f"{BETTER} and {BASE}: neither is better than saying yes to every frame" and t.loc["up", "low"] > 0


def test_one_row_that_has_learnt_is_enough(tmp_path):
    claims = ledger(tmp_path, up=compare(BETTER, "higher"), unlike=compare(BETTER, "equal", "margin: 5"), reversed=compare(BETTER, "lower"))
    t = judged(*made_store(tmp_path / "r", {BASE: SHIER, BETTER: BOLD}), claims)
    assert t["verdict"].to_dict() == {"up": "supported", "unlike": "refuted", "reversed": "refuted"} and (t["reason"] == "").all()


def test_each_of_two_gains_needs_a_row_that_has_learnt(tmp_path):
    more = "more_than: {row: %s, minus: %s}"
    claims = ledger(tmp_path, known=compare(BETTER, "higher", more % (EQUAL, BASE)), void=compare(BETTER, "higher", more % (WORSE, BASE)),
                    first=f"study: {STUDY}; row: {WORSE}; minus: {BASE}; direction: lower; more_than: {{row: {BETTER}, minus: {BASE}}}")
    t = judged(*made_store(tmp_path / "r", {BASE: SHIER, BETTER: 0.05, EQUAL: BOLD, WORSE: SHY}), claims)
    assert t["verdict"].to_dict() == {"known": "supported", "void": "inconclusive", "first": "inconclusive"}
    assert t.loc["void", "reason"] == t.loc["first", "reason"] == f"{WORSE} and {BASE}: neither is better than saying yes to every frame"


def test_an_open_line_stays_in_the_family(tmp_path):
    store = made_store(tmp_path / "r", {BASE: SHIER, BETTER: SHY, EQUAL: 0.3, WORSE: 0.3})
    claims = ledger(tmp_path, void=compare(BETTER, "higher"), close=f"study: {STUDY}; row: {EQUAL}; minus: {WORSE}; direction: higher")
    t = judged(*store, claims)
    assert t["p_holm"].notna().all() and t.loc["void", "p_holm"] == 2 * t.loc["void", "p"]


def test_errors_as_large_as_those_of_always_zero_are_void():
    "MAE rewards who says 0 always, as F1 rewards who says yes."
    from types import SimpleNamespace

    from au_study.study.protocol import Protocol
    from au_study.study.tables import RowScores
    truth = frames(6)[["subject", "video", "frame", "AU6"]]
    def scored(level): return RowScores(truth, truth.assign(AU6=level), Protocol("made", (6,)), 1, 1, "code", "data", True)
    rows = {"zeros": scored(0.0), "ones": scored(1.0), "half": scored(truth["AU6"] / 2)}
    fake = SimpleNamespace(runs=lambda study, row: {0: row}, pool=lambda run, kind: rows[run], drawn=lambda run, metric: C.drawn_values(rows[run], metric, 50))
    assert [C.Evidence.learnt(fake, "s", r, "mae", ("Avg",), [0]) for r in rows] == [False, False, True] and C.Evidence.learnt(fake, "s", "zeros", "icc31", ("Avg",), [0])


def test_the_screen_says_why_a_measured_line_is_open(tmp_path):
    plan, store = made_store(tmp_path / "r", {BASE: SHIER, BETTER: SHY})
    said = C.ledger_text(C.claims_table(plan, store, ledger(tmp_path, it=compare(BETTER, "higher")), 500), 140)
    assert "points" in said and f"{BETTER} and {BASE}: neither is better than saying yes to every frame" in said


# --- what is missing -----------------------------------------------------------------------------------------------------------------

def test_half_a_seed_does_not_count(tmp_path):
    plan, store = made_store(tmp_path / "r", PLANTED)
    store.forget(plan.studies["made"]["rows"][BETTER][-1])                    # one fold of the last seed
    claims = ledger(tmp_path, it=compare(BETTER, "higher"))
    assert judged(plan, store, claims).loc["it", "seeds"] == 2
    for run in plan.studies["made"]["rows"][BETTER][:-1]: store.forget(run)
    t = judged(plan, store, claims).loc["it"]
    assert t["verdict"] == "not run" and "0 of 6 runs" in t["reason"] and t["fill"] == f"au-study reproduce {STUDY} --profile quick" and np.isnan(t["effect"])


def test_scores_on_other_data_are_not_judged(tmp_path):
    plan, store = made_store(tmp_path / "r", PLANTED)
    record = next((tmp_path / "r/data").glob("*/data.json"))
    write(record, {**json.loads(record.read_text()), "fingerprint": "other"})
    t = judged(plan, store, ledger(tmp_path, it=compare(BETTER, "higher"))).loc["it"]
    assert t["verdict"] == "not run" and "reproduce" in t["reason"]


def test_a_damaged_run_leaves_the_others_their_verdicts(tmp_path):
    plan, store = made_store(tmp_path / "r", PLANTED)
    run = next(r for r in plan.runs if r.startswith(WORSE))
    seal(store.root / "runs" / run)
    (store.root / "runs" / run / "scores.parquet").write_bytes(b"PAR1")
    table = judged(plan, store, ledger(tmp_path, gain=compare(BETTER, "higher"), loss=compare(WORSE, "lower")))
    assert table.loc["gain", "verdict"] == "supported" and table.loc["loss", "verdict"] == "not run" and "isn't what was written" in table.loc["loss", "reason"]


def test_seeds_are_found_in_the_store(tmp_path):
    _, store = made_store(tmp_path / "r", {BASE: 0.3}, seeds=(0, 7))
    assert C.stored_seeds(store, "quick") == {0, 7} and C.stored_seeds(store, "full") == set()


# --- cells of analyses ---------------------------------------------------------------------------------------------------------------

def table_store(root, study, lines, runs=None):
    "A results folder with the finished table of an analysis."
    spec = data_spec(load_study(study).dataset, load_profile("quick"))
    write(root / "data" / data_id(spec) / "data.json", {"id": data_id(spec), "fingerprint": "made", "synthetic": True})
    frames(20).to_parquet(root / "data" / data_id(spec) / "frames.parquet", index=False)
    place = root / "studies" / "made"
    place.mkdir(parents=True)
    pd.DataFrame(lines, columns=["row", "item", "measured", "low", "high"]).assign(kind="world").to_csv(place / "table.csv", index=False)
    plan = Plan("quick-world", "quick", "world", data={data_id(spec): {"spec": spec}}, runs={f"r{s}": {"seed": s, "fold": 0, "dataset": "bp4d"} for s in runs or ()})
    plan.studies["made"] = {"study": study, "rows": {"row": list(plan.runs)} if runs else {}, "data": [data_id(spec)]}
    return plan, RunStore(root)


def cell(study, name, direction, more=""): return f"study: {study}; cell: {name}; direction: {direction}" + (f"; {more}" if more else "")


def test_cells_with_an_interval(tmp_path):
    study, lines = "re_net_figure2", [("AU1", "AU2", 0.5, 0.4, 0.6), ("AU12", "AU15", -0.02, -0.1, 0.06)]
    claims = ledger(tmp_path, seen=cell(study, "[AU1, AU2]", "higher"), open=cell(study, "[AU12, AU15]", "lower"), gone=cell(study, "[AU1, AU3]", "higher"))
    t = judged(*table_store(tmp_path / "r", study, lines), claims)
    assert t["verdict"].to_dict() == {"seen": "supported", "open": "inconclusive", "gone": "not run"}     # labels alone: no training, no seeds
    assert (t["seeds"].dropna() == 0).all() and "near: AU1, AU2" in t.loc["gone", "reason"]


@pytest.mark.parametrize("pools, seeds, word", [("first", (0, 1, 2), "agrees (one seed)"), ("all", (0, 1, 2), "supported"), ("all", (0,), "agrees (one seed)")])
def test_cells_of_trained_models_are_worth_their_seeds(tmp_path, pools, seeds, word):
    study = "aunet_figure10"
    t = judged(*table_store(tmp_path / "r", study, [("AU-TDN - AU-FAN", "found frames after which it breaks off, %", -5, -6, -4)], seeds),
               ledger(tmp_path, it=cell(study, "[AU-TDN - AU-FAN, found frames*]", "lower", f"runs: {pools}")))
    assert t.loc["it", "verdict"] == word


def test_cells_that_are_counted_or_timed(tmp_path):
    study, none = "au_rcnn_table11", np.nan
    lines = [("A", "parameters", 100, none, none), ("B", "parameters", 900, none, none), ("B", "times A, cpu", 1.4, 1.2, 1.6), ("C", "times A, cpu", 1.1, 0.9, 1.2),
             ("D", "times A, cpu", 1.4, none, none)]
    timed = "interval: rounds; than: 1"
    claims = ledger(tmp_path, fewer=cell(study, "[A, parameters]", "lower", "minus_cell: [B, parameters]"), more=cell(study, "[A, parameters]", "higher", "minus_cell: [B, parameters]"),
                    slower=cell(study, "[B, times*]", "higher", timed), unclear=cell(study, "[C, times*]", "higher", timed),
                    apart=cell(study, "[B, times*]", "higher", "minus_cell: [C, times*]; interval: rounds; than: -1"), once=cell(study, "[D, times*]", "higher", timed))
    t = judged(*table_store(tmp_path / "r", study, lines), claims)
    assert t["verdict"].to_dict() == {"fewer": "supported", "more": "refuted", "slower": "supported", "unclear": "inconclusive",
                                      "apart": "supported", "once": "inconclusive"} and t["p"].isna().all()


def test_a_trained_number_without_interval_is_open(tmp_path):
    study = "au_rcnn_figure10"
    claims = ledger(tmp_path, it=cell(study, "[A, last epoch]", "lower", "minus_cell: [B, last epoch]; runs: all"))
    t = judged(*table_store(tmp_path / "r", study, [("A", "last epoch", 0.1, np.nan, np.nan), ("B", "last epoch", 0.4, np.nan, np.nan)], (0, 1)), claims)
    assert t.loc["it", "verdict"] == "inconclusive" and "no interval" in t.loc["it", "reason"]


# --- the ledger itself ---------------------------------------------------------------------------------------------------------------

def test_the_ledger_is_as_large_as_it_says():
    claims = C.load_claims()
    assert len({c.paper for c in claims}) == 5 and len(claims) >= 45 and sum(bool(c.tests) for c in claims) >= 40
    lines = [(c.paper, c.name, t.label) for c in claims for t in c.tests]
    assert len(set(lines)) == len(lines)
    assert {t.study for c in claims for t in c.tests} <= set(study_names())
    assert all(c.says.strip().endswith(".") and (c.tests or c.needs) for c in claims)
    with pytest.raises(ManifestError, match="no claims of 'au_net'"): C.load_claims(["au_net"])


def test_papers_and_rows_that_are_printed_have_a_printed_effect():
    claims = {(c.paper, c.name): c for c in C.load_claims()}
    found = [C._printed(t) for t in claims["aunet", "vae-helps"].tests]
    assert found == pytest.approx([0.6, 3.1, 4.9], abs=1e-6)
    assert [C._printed(t) for t in claims["re_net", "beats-baseline"].tests] == pytest.approx([5.9, 4.6, 4.0], abs=1e-6)


@pytest.mark.parametrize("body, words", [
    (f"study: {STUDY}; row: {BETTER}; direction: higher", "needs `minus`"), (compare("AR_TAL", "higher"), "measures no row 'AR_TAL'"), (compare(BETTER, "higher", "margin: 1"), "has no margin"),
    (compare(BETTER, "higher", "cell: [a, b]"), "either `row`"), (cell(STUDY, "[a, b]", "higher"), "a study of scores"), (cell("au_rcnn_table11", "a", "higher"), "expected \\[row, item\\]"),
    (compare(BETTER, "higher", f"more_than: {{rows: {BASE}}}"), "unknown key 'rows'"), (compare(BETTER, "higher", "needs: a row"), "either a test or"), ("note: nothing to test", "either a test or"),
    (cell("au_rcnn_table11", "[a, b]", "higher", "runs: some"), "expected one of first, all"), (f"row: {BETTER}; minus: {BASE}; direction: higher", "study missing")])
def test_mistakes_name_file_and_claim(tmp_path, body, words):
    with pytest.raises(ManifestError, match=f"mine.yaml, claim it.*{words}"): ledger(tmp_path, it=body)


# --- on the command line -------------------------------------------------------------------------------------------------------------

def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    plan, store = made_store(tmp_path / "r", PLANTED, seeds=(0,))
    claims = ledger(tmp_path, gain=compare(BETTER, "higher"), lost="study: au_rcnn_table8; row: AR_res; minus: CNN_res; direction: higher", other="needs: another group's method")
    monkeypatch.setattr(C, "load_claims", lambda papers=None: claims)
    monkeypatch.setattr(C, "ledger_plan", lambda *a: plan)
    monkeypatch.setenv("COLUMNS", "150")
    parser = argparse.ArgumentParser()
    C.add_arguments(parser)
    assert C.run(parser.parse_args(["au_rcnn", "--results", str(store.root), "--csv", str(tmp_path / "c.csv")])) == 0
    said = capsys.readouterr().out
    for words in ("agrees (one seed)", "(paper +2.1)", "1 x 2 runs, world",
                  "not run: au-study reproduce au_rcnn_table8 --profile quick", f"one seed: au-study reproduce {STUDY} --profile quick --seeds 3",
                  "3 claims, 3 lines: 1 agrees (one seed), 1 not run, 1 published only."):
        assert words in said
    assert list(pd.read_csv(tmp_path / "c.csv")) == C.CLAIM_COLUMNS


def test_plans_take_more_seeds_than_the_profile_has(tmp_path):
    from dataclasses import replace

    from au_study.study.plan import make_plan
    one, three = (make_plan(["static_dynamic_table1"], p, "world", tmp_path) for p in ("smoke", replace(load_profile("smoke"), seeds=(0, 1, 2))))
    assert set(one.runs) < set(three.runs) and {e["seed"] for e in three.runs.values()} == {0, 1, 2} and three.name == one.name


def test_claims_beside_a_study_are_judged_with_its_batch(tmp_path):
    from au_study.study.plan import make_plan
    from au_study.study.report import claims_file, end_with_claims
    (tmp_path / "mine.yaml").write_text("like: au_rcnn_table5\nrows:\n  CNN_res:\n  Rate: {estimator: prior}\n")
    (tmp_path / "claims.yaml").write_text("paper: mine\nclaims: {rate: {where: here, says: Rates do., study: mine.yaml, row: Rate, minus: CNN_res, direction: higher}}\n")
    plan = make_plan([tmp_path / "mine.yaml"], "quick", results=tmp_path / "r")
    assert end_with_claims(plan, tmp_path / "r") == f"Claims tested by these studies: 1 not run. `au-study claims {tmp_path / 'claims.yaml'} --results {tmp_path / 'r'}` shows them."
    lines = pd.read_csv(claims_file(plan, tmp_path / "r"))
    assert list(lines[lines["paper"] == "mine"]["says"]) == ["Rates do."] and set(lines["paper"]) > {"mine", "au_rcnn"}
    (tmp_path / "claims.yaml").write_text("paper: mine\nclaims: {rate: {where: here}}\n")
    assert "No claims were judged: claims.yaml, claim rate: says missing" in end_with_claims(plan, tmp_path / "r")


def test_claims_of_ones_own_leave_those_of_the_papers_as_they_are(tmp_path):
    plan, store = made_store(tmp_path, {BETTER: 0.25, BASE: 0.28})
    papers = ledger(tmp_path, gain=compare(BETTER, "higher"))
    own = [C.replace(papers[0], name=f"own{k}", paper="mine") for k in range(30)]
    alone, both = C.judge(plan, store, papers, []), C.judge(plan, store, papers, own)
    assert len(both) == 31 and both.iloc[:1].equals(alone)
    assert (both["p_holm"].iloc[1:] > 5 * alone["p_holm"].iloc[0]).all()      # one's own answer for all that was asked


def test_a_look_at_one_network_is_not_sent_for_more_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(C, "judged", lambda test, evidence: {"effect": 1.0, "low": 0.5, "high": 1.5, "p": 1e-9, "inside": True, "sure": False, "seeds": 1, "folds": 3, "subjects": 9})
    table = C.claims_table(Plan("quick-world", "quick", "world"), RunStore(tmp_path))
    tested = {f"{c.paper}/{c.name}" + f"@{t.label}" * bool(t.label): t for c in C.load_claims() for t in c.tests}
    looks = table["id"].map(lambda i: bool(i in tested and tested[i].cell and tested[i].runs == "first"))
    rest = table["id"].isin(tested) & ~looks
    assert looks.any() and set(table.loc[looks, "fill"]) == {""} and set(table.loc[looks, "verdict"]) == {"agrees (one seed)"}
    assert table.loc[rest, "fill"].str.endswith(" --seeds 3").all()
    sent = " ".join(C._calls(table, Plan("quick-world", "quick", "world"))).split()
    assert not set(table.loc[looks, "study"]) - set(table.loc[rest, "study"]) & set(sent)


def test_the_ledger_on_real_data_says_nothing_of_what_it_leaves_out(tmp_path, capsys):
    from au_study.training.batches import blob_faces
    faces = blob_faces(6, 4)
    C.replace(faces, card=C.replace(faces.card, name="bp4d")).save(tmp_path / "data/bp4d")
    C.ledger_plan("smoke", str(tmp_path / "data"), tmp_path / "r", C.load_claims(["au_rcnn"]))
    assert capsys.readouterr().out == ""
