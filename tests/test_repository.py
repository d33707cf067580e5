"The rules of the repository: a bad notebook or file fails each check, a good one passes all; and the tools do what the Makefile promises."
import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import build_docs  # noqa: E402
import environment  # noqa: E402
import lint_notebooks as lint  # noqa: E402
import readme  # noqa: E402

LIBRARY_ID = "F" + "001"  # a subject id, put together here so that this file holds none


def cell(source, kind="code", **more):
    made = {"cell_type": kind, "metadata": {}, "source": source, "id": f"id{abs(hash((source, kind))) % 10**6}"}
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {}) | more


def notebook(*cells):
    return {"cells": list(cells), "metadata": {"kernelspec": {}}, "nbformat": 4, "nbformat_minor": 5}


def printed(text):
    return [{"output_type": "stream", "name": "stdout", "text": [text]}]


def shown(kind, content):
    return [{"output_type": "display_data", "data": {kind: content}, "metadata": {}}]


def traced(name):
    return shown(lint.TRACE, {"licensed": [name]})


TITLE = cell("# Title\n> promise", "markdown")
HEADING = cell("## Part", "markdown")
MODULE = cell("#| default_exp part")
EXPORT = cell("#| export\ndef area(width): return width ** 2")
PARAMETERS = cell("seed = 1", metadata={"tags": ["parameters"]})
GOOD = {"library": notebook(TITLE, MODULE, cell("import os"), HEADING, EXPORT, cell("assert area(2) == 4")),
        "experiment": notebook(TITLE, cell("import os"), PARAMETERS, cell("print(seed)", outputs=printed("1 of 3, ../results/x"))),
        "page": notebook(TITLE, cell("text", "markdown"))}


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_notebook_passes_every_check(kind):
    assert [sentence for check in lint.CHECKS for sentence in check(GOOD[kind], kind)] == []


BAD = {
    "imports and other code": (lint.check_imports_alone, "library", [cell("import os\nx = os.sep")]),
    "import inside other code": (lint.check_imports_alone, "library", [cell("for i in range(2):\n    import os")]),
    "torchvision": (lint.check_forbidden_imports, "library", [cell("from torchvision.ops import nms")]),
    "no id": (lint.check_ids, "library", [cell("x = 1", id=None)]),
    "id twice": (lint.check_ids, "library", [cell("x = 1", id="same"), cell("y = 1", id="same")]),
    "count left": (lint.check_clean, "library", [cell("x = 1", execution_count=3)]),
    "metadata left": (lint.check_clean, "library", [cell("x = 1", metadata={"papermill": {}})]),
    "home folder": (lint.check_outputs, "library", [cell("x", outputs=printed("saved in /home/someone/kit/a.npy"))]),
    "temporary folder": (lint.check_outputs, "library", [cell("x", outputs=printed("'/tmp/x.npy'"))]),
    "windows path": (lint.check_outputs, "library", [cell("x", outputs=printed("C:\\Users\\someone"))]),
    "path in a result": (lint.check_outputs, "library",
                         [cell("x", outputs=[{"output_type": "execute_result", "data": {"text/plain": ["PosixPath('/root/x')"]}}])]),
    "photograph": (lint.check_outputs, "library", [cell("plt.imshow(plt.imread('face.jpg'))", outputs=[{"output_type": "display_data", "data": {"image/png": ""}}])]),
    "failed cell": (lint.check_outputs, "library", [cell("x", outputs=[{"output_type": "error", "ename": "ValueError"}])]),
    "embedded picture": (lint.check_outputs, "page", [cell("![](data:image/png;base64,AAAA)", "markdown")]),
    "marked picture": (lint.check_licensed_faces, "library", [cell("x", outputs=[{"output_type": "display_data", "data": {"image/png": "AAAA"},
                                                                                  "metadata": {"au_study": {"licensed": ["bp4d"]}}}])]),
    "picture beside a trace": (lint.check_licensed_faces, "library", [cell("open", outputs=traced("bp4d")), cell("x", outputs=shown("image/svg+xml", "<svg/>"))]),
    "video beside a trace": (lint.check_licensed_faces, "library", [cell("open", outputs=traced("bp4d")), cell("x", outputs=shown("text/html", "<video>"))]),
    "pixels beside a trace": (lint.check_licensed_faces, "library", [cell("open", outputs=traced("bp4d")), cell("x", outputs=printed("255, " * 9000))]),
    "subject in code": (lint.check_subject_ids, "library", [cell(f"subject = '{LIBRARY_ID}'")]),
    "subject in output": (lint.check_subject_ids, "library", [cell("x", outputs=printed(f"{LIBRARY_ID}_T1"))]),
    "no title": (lint.check_opening, "library", [cell("text", "markdown")]),
    "no promise": (lint.check_opening, "library", [cell("# Title\ntext", "markdown")]),
    "list as front matter": (lint.check_opening, "library", [cell("# Title\n> promise\n\n- `a`: first", "markdown")]),
    "no module": (lint.check_kind, "library", [TITLE, EXPORT]),
    "nothing exported": (lint.check_kind, "library", [TITLE, MODULE]),
    "no parameters": (lint.check_kind, "experiment", [TITLE, cell("print(1)")]),
    "experiment exports": (lint.check_kind, "experiment", [TITLE, PARAMETERS, EXPORT]),
    "experiment defines": (lint.check_kind, "experiment", [TITLE, PARAMETERS, cell("def f(): return 1")]),
    "never run": (lint.check_runs, "library", [cell("# Title\n> promise\n\n- skip_exec: true", "markdown")]),
    "heading jump": (lint.check_headings, "library", [TITLE, cell("### Deep", "markdown")])}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_notebook_fails(name):
    check, kind, cells = BAD[name]
    assert list(check(notebook(*cells), kind)), f"{check.__name__} did not notice: {name}"


def test_every_check_has_a_bad_notebook():
    assert {check for check, *_ in BAD.values()} == set(lint.CHECKS)


def test_large_and_broken_notebooks_are_named(tmp_path):
    path = tmp_path / "large.ipynb"
    path.write_text(json.dumps(notebook(TITLE, MODULE, HEADING, EXPORT, cell("x", outputs=printed("a" * 210_000)))))
    assert "at most 200" in lint.lint_notebook(path)[0]
    path.write_text(json.dumps(notebook(TITLE, cell("def f(:"))))
    assert "not Python" in lint.lint_notebook(path)[-1]


@pytest.fixture
def clone(tmp_path):
    "A git repository of one notebook, exported."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "10_part.ipynb").write_text(json.dumps(GOOD["library"]))
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True)
    return tmp_path


def test_exports_out_of_sync_are_noticed(clone):
    assert list(lint.check_exports(clone)) == []
    module = clone / "au_study" / "part.py"
    module.write_text(module.read_text().replace("width ** 2", "width * 3"))
    (clone / "au_study" / "left_over.py").write_text("")
    found = list(lint.check_exports(clone))
    assert any("part.py differs" in sentence for sentence in found) and any("left_over.py comes from no notebook" in s for s in found)
    module.unlink()
    assert any("part.py is missing" in sentence for sentence in lint.check_exports(clone))


def test_files_that_do_not_belong_are_noticed(clone):
    assert list(lint.check_files(clone)) == []
    (clone / "face.jpg").write_bytes(b"")
    (clone / "crops.h5").write_bytes(b"")
    (clone / "marked.txt").write_text(f"{lint.MARK}: bp4d")
    (clone / "scratch.ipynb").write_text(json.dumps(notebook(cell("open", outputs=traced("bp4d")), cell("x", outputs=shown("image/png", "AAAA")))))
    (clone / "list.csv").write_text(f"subject\n{LIBRARY_ID}\n")
    (clone / "script.py").write_text("import timm\n")
    (clone / "data_manifests" / "splits").mkdir(parents=True)
    (clone / "data_manifests" / "splits" / "folds.csv").write_text(f"subject\n{LIBRARY_ID}\n")
    found = sorted(sentence.split()[0].rstrip(":") for sentence in lint.check_files(clone))
    assert found == ["crops.h5", "face.jpg", "list.csv", "marked.txt", "scratch.ipynb", "script.py"]


def test_small_results_of_the_face_world_may_be_kept(clone):
    def put(name, content): (clone / name).parent.mkdir(parents=True, exist_ok=True); (clone / name).write_bytes(content)
    kept = clone / "results" / "reference"
    put(kept / "quick-world" / "scores" / "run.parquet", b"PAR1")
    put(kept / "quick-world" / "tables" / "figure.png", b"PNG")
    assert list(lint.check_files(clone)) == []
    put(kept / "quick-world" / "scores" / "large.parquet", bytes(lint.MAX_KEPT + 1))
    put(kept / "quick-world" / "crops.npy", b"")
    put(kept / "quick-world" / "tables" / "marked.png", f"{lint.MARK}: bp4d".encode())
    put(kept / "quick-bp4d" / "scores" / "run.parquet", b"PAR1")
    found = sorted(Path(sentence.split()[0].rstrip(":")).name for sentence in lint.check_files(clone))
    assert found == ["crops.npy", "large.parquet", "marked.png", "run.parquet"]


def test_a_module_that_needs_torchvision_is_noticed(clone):
    assert list(lint.check_module_imports(clone)) == []
    (clone / "au_study" / "extra.py").write_text("import torchvision\n")
    assert "au_study.extra fails without torchvision" in "".join(lint.check_module_imports(clone))


def test_readme_follows_the_front_page():
    page = notebook(cell("# Kit\n[a page](faces/10_frames.ipynb#keys), [out](https://example.org), [licence](../LICENSE)", "markdown"),
                    cell("#| hide\nimport os"), cell("#| echo: false\nplt.show()"), cell("#| eval: false\n1 + 1", outputs=printed("2\n")))
    text = readme.readme_of(page)
    assert "(nbs/faces/10_frames.ipynb#keys)" in text and "(https://example.org)" in text and "(LICENSE)" in text
    assert "```python\n1 + 1\n```\n\n```text\n2\n```" in text and "import os" not in text and "plt" not in text


def test_requirements_are_compared_with_what_is_installed(monkeypatch):
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda name: "2.11.0+cu128")
    assert environment.problem_with("torch>=2.6") is None
    assert "needed is torch>=2.12" in environment.problem_with("torch>=2.12")
    assert "needed is torch>=2,<2.11" in environment.problem_with("torch>=2,<2.11")
    assert environment.problem_with("a-package-that-nobody-wrote") == "a-package-that-nobody-wrote is missing"


def test_every_import_is_a_requirement():
    def modules(node):
        if isinstance(node, ast.Import): return [a.name for a in node.names]
        return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
    imported = {m.partition(".")[0] for path in (ROOT / "au_study").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())) for m in modules(node)}
    packages = packages_distributions() | {"cv2": ["opencv-python-headless"], "dlib": ["dlib-bin"]}     # names of others that give the same module
    needed = {environment.re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in environment.requirements()}
    others = imported - {*sys.stdlib_module_names, "au_study"}
    assert "torch" in others and not {m for m in others if needed.isdisjoint(p.lower().replace("_", "-") for p in packages.get(m, ()))}


def test_constraints_pin_every_requirement():
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"}
    needed = {environment.re.match(r"[\w.-]+", r)[0].lower() for r in environment.requirements()}
    assert needed <= {name.replace("_", "-") for name in pinned} | pinned
    assert pinned & {"torchvision", "timm"} == set()


def test_an_unfit_interpreter_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(environment.sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match="make PYTHON=python3.11"):
        environment.check_version()


def test_links_of_the_documentation():
    pages = {"index.ipynb": "index", "faces/10_frames.ipynb": "faces/frames", "00_facs.ipynb": "facs"}
    labels = {build_docs.label("faces/frames", "check_frames")}
    linker = build_docs.Linker("faces/frames", pages, labels, "https://host/kit")
    assert linker("[`check_frames`](https://host/kit/faces/frames.html#check_frames)") == "[`check_frames`](#api-faces-frames-check_frames)"
    assert linker("[facs](../00_facs.ipynb#names)") == "[facs](../facs.ipynb#names)"
    assert linker("[the licence](../../LICENSE)") == "the licence"
    assert linker("[`parallel`](https://fastcore.fast.ai/parallel.html#parallel)") == "`parallel`"
    assert linker("`[x](../00_facs.ipynb)`") == "`[x](../00_facs.ipynb)`"
    behind_code = linker("([`parallel`](https://fastcore.fast.ai/parallel.html) of [facs](../00_facs.ipynb)), not `x`")
    assert behind_code == "(`parallel` of [facs](../facs.ipynb)), not `x`"
    assert build_docs.label("p", "Augment") != build_docs.label("p", "augment")


def test_own_choices_become_boxes():
    boxed = build_docs.our_choice("text\n\n> Our choice: half.\n> Because.\n\nmore")
    assert boxed == "text\n\n:::{admonition} Our choice\n:class: our-choice\n\nhalf.\nBecause.\n:::\n\nmore"


def pages_of_the_kit():
    "Names of the pages by notebook."
    names = [str(p.relative_to(ROOT / "nbs")) for p in lint.all_notebooks()]
    return {name: build_docs.re.sub(r"(^|/)\d+_", r"\1", name.removesuffix(".ipynb")) for name in names}


def test_every_link_between_notebooks_becomes_one_between_pages():
    "With the links that nbdev makes of names in backticks."
    from nbdev.config import get_config
    from nbdev.doclinks import NbdevLookup
    facts, linkify = get_config(path=ROOT), NbdevLookup().linkify
    sources = {str(p.relative_to(ROOT / "nbs")): [build_docs.text(c) for c in lint.read(p)["cells"] if c["cell_type"] == "markdown"] for p in lint.all_notebooks()}
    pages, lost = pages_of_the_kit(), []
    for name, texts in sources.items():
        linker = build_docs.Linker(pages[name], pages, set(), facts.doc_host + facts.doc_baseurl)
        for words in texts:
            made = build_docs.re.sub(build_docs.CODE, "", linker(linkify(words)), flags=build_docs.re.M | build_docs.re.S)
            lost += [f"{name}: {link}" for link in build_docs.re.findall(r"\]\(([^)\s]*\b\d+_\w+\.ipynb)", made)]
    assert sum(text.count(".ipynb)") for texts in sources.values() for text in texts) > 300 and not lost


def test_navigation_keeps_the_reading_order():
    pages = {"index.ipynb": "index", "00_facs.ipynb": "facs", "95_extra.ipynb": "extra", "faces/10_frames.ipynb": "faces/frames",
             "au_rcnn/index.ipynb": "au_rcnn/index"}
    assert build_docs.navigation(pages) == {"Ground floor": ["facs", "faces/index"], "Papers": ["au_rcnn/index"], "About the kit": ["extra"]}


def test_every_page_of_the_kit_has_its_part_of_the_navigation():
    assert build_docs.navigation(pages_of_the_kit())["About the kit"] == ["docrender"]


def test_the_front_page_says_what_is_done():
    "What the front page tells of the default batch, of notebooks and of sizes is what the manifests and the tools say."
    from au_study.study.manifests import default_studies, load_profile, load_study
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    *single, first, last = map(int, build_docs.re.search(r"eight tables of AU R-CNN: the control experiments (\d+) and (\d+), and the statistics (\d+), (\d+) and (\d+) to (\d+)\.", said).groups())
    tables = sorted(load_study(n).table for n in default_studies())
    assert tables == sorted([*single, *range(first, last + 1)]) and len(tables) == 8 and {load_study(n).paper for n in default_studies()} == {"au_rcnn"}
    assert f"schedules on crops of {load_profile('full').world['crop']} px" in said and environment.CPU_TORCH in said
    kinds = {lint.kind_of(p, lint.read(p)) for p in lint.all_notebooks()}
    assert len(kinds) == 3 and "Three kinds of notebooks" in said and all(f"*{k.capitalize()}" in said for k in kinds)
    assert "after `make hooks`" in said and "no licensed face in a commit" in (ROOT / "Makefile").read_text()
