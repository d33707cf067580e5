"""The printed tables of the papers join with what the kit measures: rows of studies, AUs, groups of AUs."""

import pytest

from au_study.study.published import audit, printed, published, published_card, published_papers, published_tables

AUS = {"bp4d": [1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24], "disfa": [1, 2, 4, 6, 9, 12, 25, 26]}
AUS["bp4d_plus"] = AUS["bp4d"]


@pytest.mark.parametrize("paper", published_papers())
def test_every_table_reads_and_has_a_caption(paper):
    tables = published_card(paper)["tables"]
    assert sorted(tables) == published_tables(paper)
    for k, card in tables.items():
        wide = published(paper, k)
        assert card["title"] and wide.shape[0] * wide.shape[1] == len(printed(paper, k))


@pytest.mark.parametrize("paper", published_papers())
def test_notes_stand_exactly_where_cells_do_not_add_up(paper):
    bad = audit(paper)
    bad = bad[bad["check"].str.match("average|proportion|repeat")]
    noted = {(k, c.row, c.item) for k in published_tables(paper) for c in printed(paper, k).itertuples() if c.note}
    assert noted == {(c.table, c.row, c.item) for c in bad.itertuples()}


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
