"Licensed faces: refused, marked and traced in a real kernel, kept out of commits; and tools/lint_notebooks.py knows the same marks as the package."
import inspect
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import hooks  # noqa: E402
import lint_notebooks as lint  # noqa: E402

from au_study.faces import privacy  # noqa: E402
from au_study.faces.faceset import FaceSet  # noqa: E402
from au_study.training.batches import blob_faces  # noqa: E402

LICENSED = dict(name="bp4d", title="BP4D", synthetic=False, licence="by agreement", publishable=("listed subjects",))


@pytest.fixture(scope="module")
def licensed():
    "Made faces that claim to be licensed."
    faces = blob_faces(size=24)
    return FaceSet(faces.frames, faces.crops, faces.landmarks, replace(faces.card, **LICENSED))


def test_the_linter_and_the_package_know_the_same_marks():
    assert (lint.MARK, lint.TRACE) == (privacy.MARK, privacy.TRACE)
    outputs = [("image/png", "AA"), ("text/plain", "<img"), ("text/html", "<table>"), ("text/html", "<SVG "), ("text/latex", "x"), ("application/json", "{}"),
               ("text/markdown", "![](data:image/png;base64,AA)"), ("application/vnd.plotly.v1+json", "{}"), (privacy.TRACE, "{}")]
    assert [lint.shows_picture(*o) for o in outputs] == [privacy.shows_pictures(dict([o])) for o in outputs]


def test_every_drawing_function_refuses(licensed, tmp_path):
    for draw in (lambda **more: privacy.show_faces(licensed, **more), lambda **more: privacy.contact_sheet(licensed, tmp_path / "s.png", **more),
                 lambda **more: privacy.save_picture(licensed.crops[0], tmp_path / "p.jpg", licensed, **more)):
        with pytest.raises(privacy.LicensedFaces, match="BP4D, which are licensed .by agreement.*lets one publish: listed subjects.*allow_licensed=True"):
            draw()
        draw(allow_licensed=True)
    for path in tmp_path.iterdir():
        assert privacy.marks_in(path.read_bytes()) == lint.marks_in(path.read_bytes()) == {"bp4d"}
    figure = privacy.show_faces(licensed, allow_licensed=True)
    figure.savefig(tmp_path / "f.svg")
    assert lint.marks_in((tmp_path / "f.svg").read_bytes()) == {"bp4d"} and lint.marks_in(figure._repr_png_()) == {"bp4d"}


def run(*sources, folder):
    "Execute cells in a kernel of their own; the notebook as stored."
    path = folder / "planted.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}     # a kernel chooses how it shows figures
    NotebookClient(notebook, timeout=600, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute(env=environment)
    nbformat.write(notebook, path)
    subprocess.run([sys.executable, "-c", f"from nbdev.clean import nbdev_clean; nbdev_clean(fname={str(path)!r}, disp=False)"], cwd=ROOT, check=True)
    return lint.read(path)


DRAWINGS = {
    "own imshow": "plt.imshow(faces.crops[0]);",
    "PIL": "Image.fromarray(np.asarray(faces.crops[0]))",
    "svg": "set_matplotlib_formats('svg'); fig, ax = plt.subplots(figsize=(1, 1)); ax.imshow(faces.crops[0]); plt.show()",
    "animation": "ani = FuncAnimation(plt.figure(figsize=(1, 1)), lambda i: plt.imshow(faces.crops[i]), frames=2); plt.close(); HTML(ani.to_jshtml())",
    "jpeg": "display(IPImage(data=jpeg(faces.crops[0]), format='jpeg'))",
    "video": "display({'text/html': '<video src=x>'}, raw=True)",
    "asked for": "show_faces(faces, 2, allow_licensed=True)"}


def cells(complaints):
    "Numbers of the cells that are complained of."
    return sorted({int(complaint.split()[1]) for complaint in complaints})


def drawing(faces):
    "Every analysis that draws crops, on a FaceSet: name -> call."
    from au_study.au_rcnn.figures import detection_figure
    from au_study.aunet.analyses import landmark_table
    from au_study.aunet.fan import FAN
    from au_study.aunet.figures import branch_figure, feature_map_figure
    from au_study.aunet.landmarks import FANLandmarks
    from au_study.aunet.network import AUHead, AUNetwork, FrozenTrunk
    from au_study.aunet.temporal_difference import TemporalDifference
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fan = FAN(2, width=.0625, depth=2, maps="softmax").eval()
        nets = {"AU-FAN": AUNetwork(FrozenTrunk(fan), AUHead(48, 2, 16)), "AU-TDN": AUNetwork(FrozenTrunk(fan), AUHead(16, 2, 16, 3, reduce=False), TemporalDifference(48, 16))}
    scores = faces.frames[["subject", "video", "frame"]].assign(**dict.fromkeys(faces.columns, .6))

    def model(row, k=0): return SimpleNamespace(module_=nets[row], base_side=None, offsets=(-1, 0, 1), base=FANLandmarks())
    context = SimpleNamespace(runs={"AU-FAN": ["r"]}, faces=faces, tested=lambda row: faces, model=model, n_boot=20, ids=lambda row: ["r"],
                              store=SimpleNamespace(scores=lambda run: scores), scores=lambda row: SimpleNamespace(protocol=SimpleNamespace(score_threshold=.5)))
    return {f.__name__: lambda f=f: f(context) for f in (detection_figure, feature_map_figure, branch_figure, landmark_table)}


def test_no_analysis_draws_licensed_crops_and_all_keep_their_numbers(monkeypatch):
    drawn, made, imshow = [], blob_faces(size=32), Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, image, *a, **k: drawn.append(np.ndim(image)) or imshow(self, image, *a, **k))
    closed = FaceSet(made.frames, made.crops, made.landmarks, replace(made.card, **LICENSED))
    for name, call in drawing(made).items():
        drawn.clear()
        table, _, _ = call()
        assert 3 in drawn, f"{name} draws no face of the world, so this test says nothing of it"
        drawn.clear()
        same, _, _ = drawing(closed)[name]()
        assert 3 not in drawn, f"{name} draws licensed faces"
        assert same.equals(table)
        plt.close("all")


def test_pictures_of_analyses_are_known():
    modules = {e.load().__module__ for e in entry_points(group="au_study.analyses")}
    draw = {f.__qualname__ for m in modules for f in vars(sys.modules[m]).values() if inspect.isfunction(f) and f.__module__ == m and "imshow(" in inspect.getsource(f)}
    of_the_world, of_numbers = {"roi_figure", "mask_figure", "box_figure"}, {"_matrix_picture"}
    assert draw - of_the_world - of_numbers == {"detection_figure", "_map_picture", "_branch_picture", "_landmark_picture"}, "let `drawing` above call what draws faces"


def test_a_kernel_marks_every_picture_of_licensed_faces(licensed, tmp_path):
    licensed.save(tmp_path / "bp4d")
    imports = ("import io\nimport matplotlib.pyplot as plt\nimport numpy as np\nfrom IPython.display import HTML, Image as IPImage, display\nfrom PIL import Image\n"
               "from matplotlib.animation import FuncAnimation\nfrom matplotlib_inline.backend_inline import set_matplotlib_formats\n"
               "from au_study.faces.faceset import FaceSet\nfrom au_study.faces.privacy import show_faces\n"
               "def jpeg(a):\n    Image.fromarray(np.asarray(a)).save(out := io.BytesIO(), 'JPEG'); return out.getvalue()")
    notebook = run(imports, "plt.plot([1]);", "faces = FaceSet.load('bp4d')\nfaces.describe()", *DRAWINGS.values(), "faces.labels().mean(0)", folder=tmp_path)
    drawn, complaints = [*range(3, 3 + len(DRAWINGS))], list(lint.check_licensed_faces(notebook, "library"))
    assert cells(complaints) == [1, *drawn]  # tables and numbers are not pictures
    assert "opened licensed faces (bp4d)" in complaints[0] and all("shows licensed faces (bp4d)" in c for c in complaints[1:])
    for cell in notebook["cells"]:  # the traces are cleared: what was drawn after them still tells, what was drawn before is free
        cell["outputs"] = [output for output in cell["outputs"] if lint.TRACE not in output.get("data", {})]
    assert cells(lint.check_licensed_faces(notebook, "library")) == drawn
    for cell in notebook["cells"]:  # metadata stripped: marks inside PNG, JPEG, SVG and HTML remain
        for output in cell.get("outputs", []):
            output["metadata"] = {}
    assert cells(lint.check_licensed_faces(notebook, "library")) == drawn


def test_numbers_alone_and_synthetic_faces_pass(licensed, tmp_path):
    licensed.save(tmp_path / "bp4d")
    load = "from au_study.faces.faceset import FaceSet\nfrom au_study.training.batches import blob_faces\nimport matplotlib.pyplot as plt"
    assert list(lint.check_licensed_faces(run(load, "FaceSet.load('bp4d').labels().mean(0)", folder=tmp_path), "library")) == []
    assert list(lint.check_licensed_faces(run(load, "faces = blob_faces(); plt.imshow(faces.crops[0]);", folder=tmp_path), "library")) == []


def test_an_unpickled_set_leaves_its_trace(licensed, monkeypatch):
    seen = []
    monkeypatch.setattr("au_study.faces.faceset.note_opened", lambda card: seen.append(card.name))
    again = pickle.loads(pickle.dumps(licensed[:3]))
    assert seen == ["bp4d"] and np.array_equal(again.crops, licensed.crops[:3])


def test_no_notebook_of_the_repository_shows_licensed_faces():
    for name in lint.tracked_files():
        if name.endswith(".ipynb"):
            assert list(lint.check_licensed_faces(lint.read(ROOT / name), "library")) == [], name


@pytest.fixture
def clone(tmp_path):
    "A git clone with the linter and the hook."
    def git(*arguments, **more):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, capture_output=True, text=True, **more)
    git("init", "-q")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "lint_notebooks.py").write_text((ROOT / "tools" / "lint_notebooks.py").read_text())
    hooks.install_pre_commit(tmp_path)
    return tmp_path, git


def planted(*outputs):
    return json.dumps({"cells": [{"cell_type": "code", "source": ["x"], "metadata": {}, "outputs": [o], "execution_count": None, "id": str(n)} for n, o in enumerate(outputs)],
                       "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def output(kind, content):
    return {"output_type": "display_data", "data": {kind: content}, "metadata": {}}


def test_the_hook_refuses_a_commit_of_licensed_faces(clone):
    folder, git = clone
    page, picture = folder / "my page.ipynb", output("image/png", "AAAA")
    page.write_text(planted(picture))
    assert git("add", "-A").returncode == 0 and git("commit", "-m", "no licence, no complaint").returncode == 0
    page.write_text(planted(output(lint.TRACE, {"licensed": ["bp4d"]}), picture))
    git("add", "-A")
    page.write_text(planted())  # the index counts, not the file on disk
    refused = git("commit", "-m", "x")
    assert refused.returncode == 1 and "cell 1 shows a picture, and the notebook opened licensed faces (bp4d)" in refused.stdout + refused.stderr
    git("add", "-A")
    assert git("commit", "-m", "outputs cleared").returncode == 0
    (folder / "notes.html").write_text("")
    git("add", "-A")
    assert git("commit", "-m", "x").returncode == 1
    assert git("rm", "-q", "--cached", "notes.html").returncode == 0 and git("commit", "--allow-empty", "-m", "y").returncode == 0


def test_a_hook_that_is_there_is_not_overwritten(clone):
    folder, git = clone
    assert "refused from now on" in hooks.install_pre_commit(folder)  # again: nothing lost, nothing twice
    hook = folder / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\nmine\n")
    with pytest.raises(SystemExit, match="of yours already.*Add this line to it"):
        hooks.install_pre_commit(folder)
    assert hook.read_text() == "#!/bin/sh\nmine\n"
    git("config", "core.hooksPath", str(folder.parent / "elsewhere"))
    with pytest.raises(SystemExit, match="serves other clones"):
        hooks.install_pre_commit(folder)


def test_the_quarantine_sheet_of_a_licensed_set_carries_its_mark(licensed, tmp_path):
    from au_study.datasets.quality import REASONS, quarantine_sheet
    examples = [("S1", "T1", 3, next(iter(REASONS)), np.full((144, 120, 3), 90, np.uint8))]
    marked = quarantine_sheet(tmp_path / "licensed.png", examples, card=licensed.card)
    plain = quarantine_sheet(tmp_path / "made.png", examples, card=replace(licensed.card, synthetic=True))
    assert privacy.marks_in(marked.read_bytes()) == {"bp4d"} and privacy.marks_in(plain.read_bytes()) == set()
