"""The printed tables of the papers join with what the kit measures, and the audit finds what they print in two ways."""

import re
import shutil

import pandas as pd
import pytest

from au_study.study.audit import Line, audit, evaluate
from au_study.study.cli import main
from au_study.study.manifests import project_root
from au_study.study.published import number, printed, published, published_card, published_papers, published_tables

AUS = {"bp4d": [1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24], "disfa": [1, 2, 4, 6, 9, 12, 25, 26]}
AUS["bp4d_plus"] = AUS["bp4d"]
SHORT = {"AU R-CNN": "au_rcnn", "AUNet": "aunet", "RE-Net": "re_net"}
CELL_CHECKS = ("average", "impossible", "misprint", "best mark", "second mark", "proportion", "box area", "repeat")

# What an independent reader can find in print by arithmetic or by comparing places: check, table, row, item. Statements are named by how they begin.
KNOWN = {
    "au_rcnn": """average 4 LSVM Avg; average 4 DRML Avg; average 4 CPM Avg; average 4 EAC-Net Avg; average 7 DRML Avg; proportion 10 proportion g2;
        above: Sec. 4.2: larger images; above: Sec. 4.3: DISFA shows the similar result; holds: Sec. 4.3: DISFA shows the similar result;
        above: Sec. 3.4: where activity is long (mean over 100 frames on BP4D); above: Sec. 3.4: where activity is long (mean over 100 frames on DISFA);
        holds: Sec. 4.5.1: gain and duration; arithmetic: Sec. 4.5.1: the box of AU 4 is twice; above: Sec. 4.5.2: AU 17 and AU 24 rise in AR_res;
        smallest: Sec. 4.5.2: AU 1, AU 6 and AU 9 have the smallest; arithmetic: Sec. 4.5.4: the CRF has 45,540;
        above: Abstract and Sec. 5: the static model outperforms all dynamic models (DISFA); fact 0 boxes of AU R-CNN on DISFA; fact 0 boxes of AU R-CNN on BP4D;
        fact 0 AUs of group 6; fact 0 name of AU23; fact 0 name of AU24; fact 0 figure with the mask of group 3 (AU6); fact 0 figure with the mask of group 4 (AU9);
        between papers 4 DRML AU15; twin rows 7 ROI-Nets AU9; muscle between papers 1 Muscle basis AU25; muscle between papers 1 Muscle basis AU26;
        fact between papers 0 frames of DISFA from one camera""",
    "aunet": """average 3 JÄANet Avg; average 7 AU-FAN Avg; average 9 AU-TDN Avg; average 13 DRML Avg; average 13 JÄANet Avg; average 13 SRERL Avg; average 14 DRML Avg;
        impossible 14 ResNet18 AU1; second mark 13 AU-FAN AU17; second mark 14 AUNet AU1; second mark 14 HMP-PS AU25; second mark 14 JÄANet AU26; second mark 14 JÄANet Avg;
        repeat 13 JÄANet AU4; repeat 13 JÄANet AU7; repeat 13 AU-FAN AU4; holds: Sec. V-D: ResNet18 is of a computational complexity; gains: Sec. V-D: AU 2 and AU 6 are where;
        margin: Sec. V-E: gain of AU-TDN on DISFA; arithmetic: Sec. V-E: the training part of the mixture; holds: Abstract and Sec. I: a new state of the art on BP4D;
        above: Sec. V-F: AU-FAN is above the latest; holds: Sec. V-F: AUNet with its face alignment has FLOPs; holds: Sec. V-F: AUNet is less complex;
        fact 0 frames of DISFA from one camera; fact 0 frames of AffWild2; fact 0 landmarks of AU2; fact 0 height of AU2 above the outer brow;
        fact 0 data sets with a new state of the art; between papers 3 ResNet18 Avg; between papers 14 ResNet18 Avg; between papers 13 SRERL Avg;
        fact between papers 0 frames of DISFA from one camera; fact between papers 0 lowest intensity that is present on DISFA;
        fact between papers 0 lowest intensity that is present in DRML's row on DISFA; fact between papers 0 AUs of happiness""",
    "pairwise": "fact 0 what the images of a training pair share; fact 0 labels of the pseudo-intensity model's training",
    "re_net": """misprint 1 JPML AU6; misprint 1 JAA AU7; average 1 LSVM Avg; average 1 DRML Avg; average 1 EAC-net Avg; average 2 DRML Avg; average 2 EAC-net Avg;
        average 4 MAE CCNN-IT Avg; second mark 4 MAE VGP-AE AU14; second mark 4 MAE 2DC AU14; average 6 second row Avg;
        above: Abstract, Sec. 1 and 4.7: better than previous work on three benchmarks: DISFA; holds: Sec. 4.4: SRERL is second; above: Sec. 1: the AU relation helps rare AUs;
        holds: Sec. 4.6: AU 23, unseen; holds: Sec. 4.6: AU 24, unseen; holds: Sec. 4.6: AU 6, 7, 10, 12 and 14 of BP4D occur; arithmetic: Sec. 4.1: 328 sequences; arithmetic: Sec. 4.1: 20 seconds;
        fact 0 methods of Table 2 with AUs present from intensity 2; fact 0 where DSIN applies the AU relation""",
    "static_dynamic": "fact 0 an embedding in the table of AUs; fact 0 what dynamics are seen in"}


def names(found):
    "Names of the lines of an audit: by place, statements by what they say."
    return {f"{c.check}: {c.says}" if c.says and "fact" not in c.check else " ".join(filter(None, (c.check, str(c.table), c.row, c.item))) for c in found.itertuples()}


@pytest.fixture(scope="module")
def everything():
    return audit(everything=True)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    "A copy of the published tables that may be spoilt: (edit a cell, edit a card)."
    folder = tmp_path / "data_manifests" / "published"
    shutil.copytree(project_root() / "data_manifests" / "published", folder)
    (tmp_path / "data_manifests" / "studies").mkdir()
    monkeypatch.setenv("AU_STUDY_ROOT", str(tmp_path))

    def cell(paper, k, row, item, **new):
        cells = printed(paper, k)
        here = (cells["row"] == row) & (cells["item"] == item)
        assert here.sum() == 1
        for column, value in new.items(): cells.loc[here, column] = value
        cells.to_csv(folder / f"{paper}_table{k}.csv", index=False)

    def card(name, old, new):
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        assert old in text
        (folder / f"{name}.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    return cell, card


@pytest.mark.parametrize("paper", published_papers())
def test_every_table_reads_and_has_a_caption(paper):
    tables = published_card(paper)["tables"]
    assert sorted(tables) == published_tables(paper)
    for k, card in tables.items():
        wide = published(paper, k)
        assert card["title"] and wide.shape[0] * wide.shape[1] == len(printed(paper, k))


@pytest.mark.parametrize("paper", published_papers())
def test_f1_tables_hold_per_cents_of_the_data_sets_aus(paper):
    for k, card in published_card(paper)["tables"].items():
        if card["kind"] != "f1": continue
        wide = published(paper, k)
        for c in printed(paper, k).query("mark == 'misprint'").itertuples(): wide.loc[c.item, c.row] = float("nan")
        assert list(wide.index) == [f"AU{a}" for a in card.get("aus") or AUS[card["dataset"]]] + ["Avg"]
        assert wide.max().max() <= 100 and wide.min().min() >= 0 and wide.loc["Avg"].min() > 1


def test_boxes_have_the_names_of_the_partition():
    from au_study.au_rcnn.partition import box_names
    for k, dataset in ((12, "bp4d"), (13, "disfa")):
        assert set(published("au_rcnn", k).index) == set(box_names(AUS[dataset]))
    assert {g.rstrip("LR") for g in box_names(AUS["bp4d"])} == set(published("au_rcnn", 9).index)


def test_notes_stand_exactly_where_cells_disagree(everything):
    bad = everything[everything["verdict"] == "does not add up"]
    own = bad[bad["check"].isin(CELL_CHECKS)]
    due = {(c.paper, c.table, c.row, c.item) for c in own.itertuples()}
    for c in bad[bad["check"].isin(["between papers", "twin rows", "muscle between papers"])].itertuples():
        other, k, row = re.match(r"(.+), Table (\d+): ([^,]+)", c.against).groups()
        due |= {(c.paper, c.table, c.row, c.item), (SHORT[other], int(k), row, c.item)}
    noted = {(p, k, c.row, c.item) for p in published_papers() for k in published_tables(p) for c in printed(p, k).itertuples() if c.note}
    assert noted == due


@pytest.mark.parametrize("paper", published_papers())
def test_the_known_inconsistencies_are_found_and_no_others(paper, everything):
    bad = everything[(everything["paper"] == paper) & everything["verdict"].isin(["does not add up", "differs"])]
    found, known = names(bad), [" ".join(k.split()) for k in KNOWN[paper].split(";")]
    assert not [k for k in known if not any(f == k or f.startswith(k) and ": " in k for f in found)]
    assert not [f for f in found if not any(f == k or f.startswith(k) and ": " in k for k in known)]


def test_an_audit_of_one_paper_has_its_lines_and_those_it_shares(everything):
    alone = audit("re_net", everything=True)
    shares = everything["against"].str.startswith("RE-Net, ")
    pd.testing.assert_frame_equal(alone, everything[(everything["paper"] == "re_net") | shares].reset_index(drop=True), check_like=True)
    assert shares.sum() > 90


SPOILT = [  # a fault -> what the audit must say of it: (paper, check, table, row, item, printed, found)
    (("au_rcnn", 5, "CNN_res", "AU1", dict(value="47.8")), [("au_rcnn", "average", 5, "CNN_res", "Avg", "60.9", "61.11"), ("au_rcnn", "repeat", 6, "CNN_512", "AU1", "45.8", "47.8")]),
    (("aunet", 8, "AUNet", "Avg", dict(value="71.0")), [("aunet", "average", 8, "AUNet", "Avg", "71.0", "70.01"), ("aunet", "margin", 8, "AUNet", "Avg", "0.2", "1.20")]),
    (("aunet", 13, "AUNet", "AU1", dict(mark="")), [("aunet", "best mark", 13, "AUNet", "AU1", "58.0, unmarked", "best")]),
    (("aunet", 13, "HMP-PS", "AU24", dict(mark="best")), [("aunet", "best mark", 13, "HMP-PS", "AU24", "54.5, marked best", "second")]),
    (("re_net", 5, "MAE LT-all", "AU5", dict(mark="")), [("re_net", "second mark", 5, "MAE LT-all", "AU5", "0.07, unmarked", "second")]),
    (("re_net", 5, "ICC Ours", "AU1", dict(value="1.59")), [("re_net", "impossible", 5, "ICC Ours", "AU1", "1.59", "0.55")]),
    (("re_net", 2, "SRERL", "AU1", dict(value="45.6")), [("aunet", "between papers", 14, "SRERL", "AU1", "45.7", "45.6")]),
    (("re_net", 1, "ResNet18", "Avg", dict(value="59.5")), [("aunet", "between papers", 3, "ResNet18", "Avg", "56.6", "59.5")]),
    (("au_rcnn", 10, "proportion", "g5", dict(value="28.9")), [("au_rcnn", "proportion", 10, "proportion", "g5", "28.9", "29.80")]),
    (("au_rcnn", 12, "ymax", "g3", dict(value="246.5")), [("au_rcnn", "box area", 9, "box_area", "g3", "54832", "48259")]),
]


@pytest.mark.parametrize("fault, due", SPOILT, ids=lambda f: " ".join(map(str, f[:4])) if isinstance(f, tuple) else "")
def test_a_planted_fault_is_found(fault, due, copy, everything):
    cell, _ = copy
    cell(*fault[:4], **fault[4])
    keys = ["paper", "check", "table", "row", "item", "printed", "found"]
    found = set(audit(*{paper for paper, *_ in due})[keys].itertuples(index=False, name=None))
    assert not set(due) & set(everything[everything["verdict"].isin(["does not add up", "differs"])][keys].itertuples(index=False, name=None))
    assert set(due) <= found


def test_planted_faults_of_cards_are_found(copy):
    _, card = copy
    card("aunet", 'items: [AU6, AU7, AU24]', 'items: [AU6, AU7]')
    card("aunet", 'kind: top2, table: 13, row: AUNet, printed: "6"', 'kind: top2, table: 13, row: AUNet, printed: "7"')
    card("aunet", "{of: women in BP4D, value: 23,", "{of: women in BP4D, value: 24,")
    card("aunet", 'expression: "32 + 31", printed: "63"', 'expression: "32 + 31", printed: "64"')
    found = audit("aunet")
    got = {(c.check, c.printed, c.found) for c in found.itertuples()}
    assert {("gains", "all but AU6, AU7", "all but AU6, AU7, AU24"), ("top2", "7", "6"), ("arithmetic", "64", "63"), ("fact between papers", "23", "24")} <= got


def test_a_misnamed_method_is_a_twin(copy):
    _, card = copy
    card("methods", "{au_rcnn: JPML, re_net: JPML}", "{re_net: JPML}")
    found = audit("au_rcnn").query("check == 'twin rows'")
    assert "JPML" in set(found["row"]) and found.set_index("row").loc["JPML", "against"] == "RE-Net, Table 1: JPML, alike in 12 of 12 cells"


def test_statements_that_cannot_be_understood_are_refused(copy):
    _, card = copy
    card("pairwise", "kind: value, table: 1, row: Baseline, item: score", "kind: value, table: 1, row: Base, item: score")
    with pytest.raises(ValueError, match="names the cell Base, score, which Table 1 does not have"): audit("pairwise")
    card("pairwise", "kind: value, table: 1, row: Base, item: score", "kind: worth, table: 1, row: Baseline, item: score")
    with pytest.raises(ValueError, match="has the kind 'worth', expected one of value, margin"): audit("pairwise")
    with pytest.raises(ValueError, match="isn't understood"): evaluate("__import__('os')")


def test_remarks_and_places_are_read(capsys):
    assert main(["audit", "pairwise", "re_net"]) == 0
    out = capsys.readouterr().out
    assert "by reading   Eq. 6 has a minus sign" in out and "Table 2: EAC-net, Avg: 48.5  |  57.41 (mean of its 8 cells)" in out
    assert "AU R-CNN: " not in out.split("Between papers")[0] and "ROI-Nets, AU9: 8.5  |  80.5 (RE-Net, Table 2: EAC-net" in out


def test_the_command_writes_its_lines(tmp_path, capsys):
    path = tmp_path / "audit.csv"
    assert main(["audit", "static_dynamic", "--everything", "--csv", str(path)]) == 0
    lines = pd.read_csv(path, keep_default_na=False)
    assert list(lines.columns) == list(Line.__dataclass_fields__) and {"adds up", "does not add up"} == set(lines["verdict"])
    assert main(["audit", "nobody"]) == 2 and "No table of 'nobody'" in capsys.readouterr().err


def test_numbers_are_read_as_printed():
    assert number("42.3.") == 42.3 and number("-") != number("-")
    assert printed("re_net", 1).set_index(["row", "item"])["value"]["JPML", "AU6"] == "42.3." and published("re_net", 1).loc["AU6", "JPML"] == 42.3
