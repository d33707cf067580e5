"The report on a small made results folder: every number leads somewhere, everybody can read it, nothing comes from outside, and the same results give the same bytes."
import argparse
import json
import re
import shutil
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from au_study.study import report
from au_study.study.pages import SIGNS
from au_study.study.plan import Plan, write_plan
from au_study.study.sections import VERDICT_SIGNS
from au_study.study.tables import COLUMNS, latex, latex_text

NASTY = 'AR_res <script>alert("&")</script>'
NOTE = "Spearman correlation −0.24, which does not exclude zero. Nothing else."
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\x90\0\0\0\xc8"   # the part of a picture that says 400 x 200
ENVIRONMENT = {"device": "cpu", "cpus": 2, "threads": 1, "system": "Linux", "python": "3.12", "packages": {"torch": "2.8", "opencv-python": None}, "code": "c0de"}


def table(kind="scores"):
    "Rows of a study as its notebook leaves them."
    if kind == "analysis":
        return pd.DataFrame({"row": ["a", "a", "b", "b"], "item": ["gain", "rule", "gain", "rule"], "measured": ["1.25", "1, 2", "-0.5", "–"], "low": [0.5, np.nan, -2, np.nan],
                             "high": [2, np.nan, 1, np.nan], "published": ["1.5", "1, 2", None, None], "kind": "world", "note": None})
    rows = [("plain", "world", 50.0, 60.9), (NASTY, "world", 55.0, 63.0), ("quoted", "published only", np.nan, 55.8)]
    counts = {"prevalence": 20.0, "folds": 1, "seeds": 1, "subjects": 9}
    lines = [{"row": r, "kind": k, "item": i, "measured": m - 2 * (i == "AU1"), "low": m - 4, "high": m + 4, "published": p, "difference": m - p, **counts}
             for r, k, m, p in rows for i in ("AU1", "Avg")]
    made = pd.DataFrame(lines).reindex(columns=COLUMNS)
    made.loc[made["row"] == NASTY, ["vs_reference", "vs_low", "vs_high"]] = 5.0, 2.0, 8.0
    return made


@pytest.fixture
def results(tmp_path):
    "A batch with a table, an analysis with a picture, a table that waits, and a failed run."
    for name in ("r0", "r1", "parent"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        contents = {"environment": ENVIRONMENT, "metrics": {"average": {"f1": 0.5}, "code": "c0de"}, "timing": {"seconds": {"fit": 3.0, "predict": 0.2}}}
        for what, content in contents.items(): (folder / f"{what}.json").write_text(json.dumps(content))
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A run"), nbformat.v4.new_code_cell("1 + 1")]), folder / "run.ipynb")
    for name, kind in (("s-scores", "scores"), ("s-analysis", "analysis")):
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        table(kind).to_csv(folder / "table.csv", index=False)
        (folder / "table.md").write_text(f"# Title\n\nCaveat.\n\n{NOTE}\n\n| a |\n")
        nbformat.write(nbformat.v4.new_notebook(), folder / "study.ipynb")
    (tmp_path / "studies/s-analysis/figure.png").write_bytes(PNG)
    failed = tmp_path / "failed/runs/bad"
    failed.mkdir(parents=True)
    (failed / "error.json").write_text(json.dumps({"error": "RuntimeError: <b>no</b>", "cell": 3, "source": ["fit()"], "traceback": ["line 1"]}))
    (failed / "run.ipynb").write_text("{}")
    return tmp_path


@pytest.fixture
def plan(results, tmp_path_factory):
    manifest = tmp_path_factory.mktemp("manifests") / "toy_table5.yaml"
    manifest.write_text(f"""
paper: au_rcnn
table: 5
title: Toy & trouble
dataset: bp4d
reference: plain
protocol: {{split: bp4d-3fold, aus: [1]}}
rows:
  plain: {{estimator: prior}}
  {json.dumps(NASTY)}: {{estimator: prior}}
  quoted: {{published_only: of another group}}
""")
    (manifest.parent / "toy_figure.yaml").write_text("{paper: au_rcnn, title: A picture, dataset: bp4d, kind: analysis, analysis: roi_figure}")
    def study(name, kind, rows):
        source = manifest if kind == "scores" else manifest.parent / "toy_figure.yaml"
        return {"study": name, "kind": kind, "paper": "au_rcnn", "place": "Table 5", "title": "Toy & trouble", "rows": rows, "data": [], "parameters": {"study": str(source)}}
    def run(parent=None): return {"label": "x", "dataset": "bp4d", "fold": 0, "seed": 0, "parent": parent, "before": [], "data": "d", "rows": [], "parameters": {"profile": "smoke"}}
    plan = Plan("smoke-world", "smoke", "world", "seconds", runs={"r0": run(), "r1": run("parent"), "parent": run(), "bad": run()},
                studies={"s-scores": study("toy_table5", "scores", {"plain": ["r0"], NASTY: ["r1"]}), "s-analysis": study("toy_figure", "analysis", {"a": ["r0"]}),
                         "s-waits": study("toy_waits", "scores", {"plain": ["bad"]})})
    write_plan(plan, results)
    return plan


def written(results, plan, **more):
    report._SECTIONS.clear(), report._PAGES.clear()
    report.write_report(results, plan, **more)
    return {p: BeautifulSoup(p.read_text(), "html.parser") for p in sorted(results.rglob("*.html"))}


# --- where numbers lead -------------------------------------------------------------------------------------------------------------

def test_every_link_leads_to_a_file_or_a_place_on_the_page(results, plan):
    pages = written(results, plan)
    assert len(pages) == 2
    for path, page in pages.items():
        ids = {e["id"] for e in page.find_all(id=True)}
        for link in page.find_all(["a", "img"]):
            file, _, place = (link.get("href") or link["src"]).partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            assert target.exists() and results in target.parents, f"{path.name}: {link}"
            if place: assert place in ({e["id"] for e in pages[target].find_all(id=True)} if file else ids), f"{path.name}: {link}"


def test_every_measured_number_leads_to_a_notebook_and_an_environment(results, plan):
    path = results / "report/smoke-world/au_rcnn.html"
    page = written(results, plan)[path]
    measured = [c for c in page.select(".measured") if c.get_text(strip=True) != "–"]
    assert len(measured) >= 8
    for cell in measured:
        href = cell.find("a")["href"]
        if not href.startswith("#"): assert href.endswith("study.ipynb"); continue
        files = [a["href"] for a in page.find(id=href[1:]).find_all("a")]
        assert any(f.endswith("run.ipynb") for f in files) and any(f.endswith("environment.json") for f in files)


def test_numbers_are_those_of_the_tables(results, plan):
    page = written(results, plan)[results / "report/smoke-world/au_rcnn.html"]
    lines = {r.th.get_text(" ", strip=True).split(" of another")[0]: [c.get_text(" ", strip=True) for c in r.find_all("td")] for r in page.find(id="toy_table5-rows").tbody.find_all("tr")}
    assert lines["plain"][1:6] == ["50.0", "46.0 … 54.0", "60.9", "−10.9", "reference"]
    assert lines[NASTY][5] == "▲ +5.0 +2.0 … +8.0" and lines["quoted"][1:4] == ["–", "–", "55.8"]
    found = {r.th.get_text(): [c.get_text(" ", strip=True) for c in r.find_all("td")] for r in page.find(id="toy_figure-rows").tbody.find_all("tr")}
    assert found == {"a": ["1.25 0.5 … 2 ○ 1.5", "1, 2 ○ same"], "b": ["−0.5 −2 … 1", "–"]}


# --- who can read it ----------------------------------------------------------------------------------------------------------------

def test_pages_are_readable_without_eyes_mouse_script_or_network(results, plan):
    for path, page in written(results, plan, running=True).items():
        where = path.name
        assert page.html["lang"] == "en" and page.title.get_text() and page.find("main") and page.find("nav")["aria-label"], where
        ids = [e["id"] for e in page.find_all(id=True)]
        assert len(ids) == len(set(ids)), f"{where}: an id is there twice"
        for e in page.find_all(attrs={"aria-labelledby": True}): assert e["aria-labelledby"] in ids, f"{where}: {e['aria-labelledby']}"
        levels = [int(h.name[1]) for h in page.find_all(re.compile("^h[1-6]$"))]
        assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])), f"{where}: headings {levels}"
        for t in page.find_all("table"):
            assert t.caption.get_text(strip=True) and all(h.get("scope") for h in t.find_all("th")) and t.parent["tabindex"] == "0", where
            width = len(t.thead.tr.find_all(["th", "td"]))
            assert all(len(r.find_all(["th", "td"])) == width for r in t.find_all("tr")), f"{where}: {t['id']} has lines of other lengths"
        for a in page.find_all("a"): assert a.get_text(strip=True), f"{where}: {a}"
        for i in page.find_all("img"): assert NOTE in i["alt"] and (i["width"], i["height"]) == ("400", "200")
        for bar in page.select("[role=progressbar]"): assert bar["aria-label"] and 0 <= float(bar["aria-valuenow"]) <= 100
        text = path.read_text()
        assert not re.search(r"https?://|@import|url\(", text) and not page.find_all(["link", "iframe", "object"]) and not page.find_all("script", src=True), where


def test_what_a_number_is_stands_there_in_words(results, plan):
    pages = written(results, plan)
    for page in pages.values():
        for kind in SIGNS: assert SIGNS[kind][1] in page.get_text()
    rows = pages[results / "report/smoke-world/au_rcnn.html"].find(id="toy_table5-rows").tbody.find_all("tr")
    assert [r.select_one(".tag").get_text() for r in rows] == ["◆ face world", "◆ face world", "○ published only"]


def test_tables_can_be_sorted_by_number(results, plan):
    page = written(results, plan)[results / "report/smoke-world/au_rcnn.html"]
    made = page.find(id="toy_table5-rows")
    assert "sortable" in made["class"] and [r.find_all("td")[1].get("data-v") for r in made.tbody.find_all("tr")] == ["50", "55", ""]
    assert not made.find_all("button"), "heads become buttons by the script, so that there are none without it"
    assert page.find(id="toy_table5-items").tfoot.th.get_text() == "Avg"
    for part in ("aria-sort", "createElement('button')", "localStorage", "prefers-color-scheme"): assert part in str(page)


def test_names_and_errors_are_text(results, plan):
    for path, page in written(results, plan).items():
        assert "alert(" not in "".join(s.get_text() for s in page.find_all("script")), path.name
        assert not page.find("b", string="no"), "an error message became markup"
        assert "RuntimeError: <b>no</b>" in page.get_text()


# --- while a batch runs -------------------------------------------------------------------------------------------------------------

def test_only_the_overview_renews_itself_and_only_while_running(results, plan):
    index, paper = results / "index.html", results / "report/smoke-world/au_rcnn.html"
    running = written(results, plan, running=True)
    assert running[index].body["data-renew"] and running[index].find("noscript").meta["http-equiv"] == "refresh" and not running[paper].body.get("data-renew")
    assert "3 of 4 runs and 2 of 3 tables done, 1 failed" in running[index].get_text()
    still = written(results, plan)[index]
    assert still.head.noscript is None and not still.body.get("data-renew")
    assert "goes on where it stopped" in index.read_text()


def test_a_call_without_news_writes_nothing_and_the_same_results_give_the_same_bytes(results, plan, tmp_path_factory):
    written(results, plan)
    files = [*results.glob("*.html"), *(p for d in ("report", "tables", "costs") for p in (results / d).rglob("*") if p.is_file())]
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}
    report.write_report(results, plan)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}
    other = tmp_path_factory.mktemp("other") / "results"
    shutil.copytree(results, other, ignore=shutil.ignore_patterns("report", "tables", "costs", "index.html"))
    written(other, plan)
    assert {p.relative_to(results): b for p, (_, b) in before.items()} == {p.relative_to(results): (other / p.relative_to(results)).read_bytes() for p in files}


def test_only_what_changed_is_made_again(results, plan, monkeypatch):
    written(results, plan)
    made, real = [], report.make_section
    monkeypatch.setattr(report, "make_section", lambda plan, name, *rest: made.append(name) or real(plan, name, *rest))
    report.write_report(results, plan)
    assert made == []
    shutil.rmtree(results / "failed/runs/bad")
    shutil.copytree(results / "runs/r0", results / "runs/bad")
    report.write_report(results, plan)
    assert made == ["s-waits"] and "4 of 4 runs" in (results / "index.html").read_text()


def test_a_table_that_no_longer_holds_is_taken_away(results, plan):
    written(results, plan)
    files = results / "tables/smoke-world"
    assert {p.name for p in files.iterdir()} == {f"toy_{n}" for n in ("table5.csv", "table5.md", "table5.tex", "figure.csv", "figure.md", "figure.tex", "figure.png")}
    shutil.rmtree(results / "studies/s-analysis")
    written(results, plan)
    assert {p.name for p in files.iterdir()} == {f"toy_table5.{k}" for k in ("csv", "md", "tex")}


def test_a_batch_whose_manifests_are_gone_is_still_shown(results, plan):
    for entry in plan.studies.values(): entry["parameters"]["study"] = str(results / "gone.yaml")
    page = written(results, plan)[results / "report/smoke-world/au_rcnn.html"]
    assert "55.0" in page.find(id="toy_table5-rows").get_text()


# --- claims, notebooks, LaTeX -------------------------------------------------------------------------------------------------------

def test_kept_verdicts_are_shown_with_their_age(results, plan):
    claims = pytest.importorskip("au_study.study.claims")
    assert set(VERDICT_SIGNS) == set(claims.VERDICTS)
    about = {"paper": "au_rcnn", "claim": "c", "says": "boxes help", "study": "toy_table5", "place": "Table 5", "item": "Avg", "kind": "world", "unit": "points"}
    line = dict.fromkeys(claims.CLAIM_COLUMNS, "") | about | {"verdict": "agrees (one seed)", "effect": 5.0, "low": 2.0, "high": 8.0, "p_holm": 0.01, "seeds": 1, "folds": 3}
    path = report.claims_file(plan, results)
    path.parent.mkdir()
    pd.DataFrame([line]).to_csv(path, index=False)
    index, page = (written(results, plan)[results / n] for n in ("index.html", "report/smoke-world/au_rcnn.html"))
    assert "1 claim, 1 test: 1 agrees (one seed)" in index.find("section", {"aria-labelledby": "claims"}).get_text() and "Runs have ended since" not in index.get_text()
    assert "boxes help" in page.find(id="claims-lines").get_text() and page.find(id="claims-lines").find("a", href="#toy_table5")
    (results / "runs/r0/new").touch()
    assert "Runs have ended since" in written(results, plan)[results / "index.html"].get_text()


def test_claims_of_ones_own_stand_on_the_overview(results, plan):
    claims = pytest.importorskip("au_study.study.claims")
    line = dict.fromkeys(claims.CLAIM_COLUMNS, "") | {"paper": "mine", "claim": "c", "says": "mine helps", "study": "/home/me/toy_table5.yaml", "verdict": "not run", "reason": "0 of 3 runs are there"}
    path = report.claims_file(plan, results)
    path.parent.mkdir()
    pd.DataFrame([line]).to_csv(path, index=False)
    pages = written(results, plan)
    own = pages[results / "index.html"].find(id="claims-lines")
    assert "mine helps" in own.get_text() and own.find("a", href="report/smoke-world/au_rcnn.html#toy_table5")
    assert pages[results / "report/smoke-world/au_rcnn.html"].find(id="claims-lines") is None


def test_notebooks_become_pages_once_and_numbers_then_lead_to_them(results, plan):
    assert report.notebook_pages(plan, results) == 5 and report.notebook_pages(plan, results) == 0
    page = written(results, plan)[results / "report/smoke-world/au_rcnn.html"]
    assert page.find(id="toy_table5-runs-0").find("a")["href"] == "../../report/notebooks/r0.html"
    shown = (results / "report/notebooks/r0.html").read_text()
    assert "A run" in shown and "../../runs/r0/run.ipynb" in shown and "../../runs/r0/environment.json" in shown and not re.search(r"https?://", shown)


@pytest.mark.parametrize("char", list("&%$#_{}~^\\<>") + ["–", "…", "−", "✓"])
def test_latex_escapes(char):
    bare = re.sub(r"\\[a-z]+\{\}|\$[^$]*\$|\\[&%$#_{}]", "", latex_text(f"a{char}b"))
    assert re.fullmatch("ab|a--b", bare), f"{char!r} is left bare in {latex_text(char)!r}"


def test_latex_tables_hold_together(results, plan):
    written(results, plan)
    for path in (results / "tables").rglob("*.tex"):
        text = path.read_text()
        opened = []
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text): assert opened.append(name) is None if kind == "begin" else opened.pop() == name
        depth = 0
        for sign in re.findall(r"(?<!\\)[{}]", text): depth += 1 if sign == "{" else -1; assert depth >= 0
        assert not opened and depth == 0 and r"\caption{" in text and r"\toprule" in text
        for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
            for line in (l for l in body.splitlines() if l.endswith(r"\\")): assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
    assert r"AR\_res $<$script$>$" in (results / "tables/smoke-world/toy_table5.tex").read_text()
    assert latex(pd.DataFrame({"a": ["x"], "b": [1.25]})).splitlines()[4] == r"  x & 1.2 \\"


def test_batches_of_another_version_do_not_stop_this_one(results, plan):
    content = json.loads((results / "plans/smoke-world.json").read_text())
    (results / "plans/alien.json").write_text('{"unknown": 1}')
    for entry in content["studies"].values(): del entry["place"]
    (results / "plans/old.json").write_text(json.dumps({**content, "name": "old"}))
    page = written(results, plan)[results / "index.html"]
    assert "can't be read: 'place'" in page.find(id="batches").get_text() and "3 of 4 runs" in page.get_text()


def test_a_later_call_hides_no_table(results, plan, capsys):
    from au_study.study import status
    later = Plan(**{**vars(plan), "runs": {r: plan.runs[r] for r in ("r0", "r1", "parent")}, "studies": {"s-scores": plan.studies["s-scores"]}})
    write_plan(later, results)
    page = written(results, later)[results / "report/smoke-world/au_rcnn.html"]
    assert page.find(id="toy_table5") and page.find(id="toy_figure") and not page.find(id="toy_waits")      # there is no such table
    status.run(argparse.Namespace(results=str(results), verbose=False))
    assert "2 of 2 tables" in capsys.readouterr().out
    (results / "plans/alien.json").write_text("[]")
    assert status.run(argparse.Namespace(results=str(results), verbose=False)) == 0


def test_a_table_that_no_face_entered_is_there_and_called_so(results, plan):
    path = results / "studies/s-analysis/table.csv"
    table = pd.read_csv(path).assign(kind="none")
    table.to_csv(path, index=False)
    pages = written(results, plan)
    (line,) = (r.get_text(" ", strip=True) for r in pages[results / "index.html"].find(id="studies").tbody.find_all("tr") if "toy_figure" in str(r))
    assert "□ without faces" in line and "not there yet" not in line
