"""Check what a reviewer would otherwise have to look for, in every notebook and in the repository around them.

    python tools/lint_notebooks.py [NOTEBOOK ...]      without names: all notebooks and the whole repository
    python tools/lint_notebooks.py --staged            what git is about to commit: licensed faces and files that may hold them (the pre-commit hook)

A notebook is *experiment* if it lies in nbs/reproduce, *page* if it is an index, a data card, the atlas, a tutorial or in nbs/evidence and exports
nothing, else *library*.
Every check is a function that yields sentences; no sentence means that all is well.
"""
from __future__ import annotations

import ast
import base64
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
MAX_KB = 200
PAGES = {"index", "data_card", "evidence", "atlas", "tutorials"}  # notebooks, or folders of them, that may explain without exporting
FORBIDDEN_IMPORTS = {"torchvision", "timm"}
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".jp2", ".ppm", ".svg", ".pdf", ".eps",
            ".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg"}
HOLDERS = {".npy", ".npz", ".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".onnx", ".safetensors", ".parquet", ".feather",
           ".arrow", ".db", ".sqlite", ".lmdb", ".mdb", ".tfrecord", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".html", ".htm"}
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])(?:/(?:home|Users|root|work|tmp|mnt|media|opt|var|scratch|data|private)/[\w.-]|[A-Z]:\\\\?\w)")
NOT_OURS = {".venv", ".git", "_docs", "_proc", "build", "results", "cache", "runs", "__pycache__", "au_study.egg-info"}  # where git cannot say
READS_PICTURE = re.compile(r"\b(?:imread|Image\.open|VideoCapture|decode_image|read_image|filename=)")
SUBJECT_ID = re.compile(r"(?<![A-Za-z0-9])(?:[FM]0\d\d|SN0\d\d)(?![A-Za-z0-9])")  # BP4D and BP4D+, DISFA
EMBEDS = re.compile(r"data:(?:image|video|audio|application)/|<(?:img|svg|canvas|video|iframe|object|embed|script)\b", re.I)
MAY_NAME_SUBJECTS = "data_manifests/splits/"


MARK = "au_study-licensed"  # these two as in au_study.faces.privacy, which this file does not import: a git hook runs anywhere
TRACE = "application/vnd.au-study.licensed+json"
KEPT = re.compile(r"results/reference/[^/]+-world(?:-\d+-seeds)?/(?:(?:scores|labels)/[^/]+\.parquet|tables/[^/]+\.(?:png|svg))")  # `au-study report --keep`, of a batch of the face world
MAX_KEPT = 100_000  # bytes of one such file
MAX_PRINTED = 20_000  # characters of one output of a notebook that opened licensed faces; more may be pixels


# --- reading ---------------------------------------------------------------------------------------------------------------------

def read(path: Path) -> dict:
    "A notebook as JSON, each cell's source joined to one string."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def kind_of(path: Path, notebook: dict) -> str:
    "experiment, page or library."
    if "reproduce" in path.parts and path.stem != "index":
        return "experiment"
    page = PAGES & {re.sub(r"^\d+_", "", path.stem), path.parent.name}
    return "page" if page and not exported_cells(notebook) else "library"


def code_cells(notebook: dict) -> list[tuple[int, dict]]:
    "Numbered code cells."
    return [(number, cell) for number, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]


def directives(cell: dict) -> set[str]:
    "First words of a cell's `#|` lines."
    return set(re.findall(r"^\s*#\|\s*([\w-]+)", cell["source"], re.M))


def exported_cells(notebook: dict) -> list[tuple[int, dict]]:
    "Code cells that nbdev exports."
    return [(n, cell) for n, cell in code_cells(notebook) if directives(cell) & {"export", "exports", "exporti"}]


def parsed(cell: dict) -> list[ast.stmt]:
    "A code cell's statements, shell and magic lines left out; empty if it is another language's cell magic."
    if cell["source"].lstrip().startswith("%%"):
        return []
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell["source"], flags=re.M)).body


def texts_of(output: dict) -> Iterator[str]:
    "All text of an output; pictures left out."
    yield "".join(output.get("text", ""))
    yield from ("".join(value) for kind, value in output.get("data", {}).items()
                if not kind.startswith("image/") and isinstance(value, (str, list)))


def marks_in(content: str | bytes) -> set[str]:
    "Names of the data sets whose faces a text or a file shows, by the mark; pictures that a text embeds are looked into."
    if isinstance(content, bytes):
        return {name.decode() for name in re.findall(MARK.encode() + rb"(?:\0|: )([\w.+-]+)", content)}
    found = marks_in(content.encode("utf-8", "replace"))
    for start in re.findall(r"(?:^|base64,)\s*([A-Za-z0-9+/\\\s]{60,400})", content):
        start = re.sub(r"[\s\\]", "", start)
        found |= marks_in(base64.b64decode(start[:len(start) // 4 * 4]))
    return found


def contents_of(output: dict) -> dict[str, str]:
    "All content of an output by MIME type, as text."
    data = {"text/plain": output["text"]} if "text" in output else output.get("data", {})
    return {kind: "".join(c) if isinstance(c, list) and all(isinstance(line, str) for line in c) else c if isinstance(c, str) else json.dumps(c)
            for kind, c in data.items()}


def shows_picture(kind: str, content: str) -> bool:
    "Whether content of this MIME type may show a picture."
    if kind.startswith("text/"):
        return kind != "text/plain" and bool(EMBEDS.search(content))
    return kind != TRACE


# --- checks of one notebook: (notebook, kind) -> sentences -------------------------------------------------------------------------

def check_imports_alone(notebook: dict, kind: str) -> Iterator[str]:
    "The docs build runs every cell with an import, and only those: other code in it would miss what came before."
    for number, cell in code_cells(notebook):
        body = parsed(cell)
        imports = [s for s in body if isinstance(s, (ast.Import, ast.ImportFrom))]
        if imports and len(imports) < len(body):
            yield f"cell {number} mixes imports with other code; put the imports in a cell of their own"
        elif not imports and not directives(cell) & {"export", "exports", "exporti"}:
            if any(isinstance(node, (ast.Import, ast.ImportFrom)) for s in body for node in ast.walk(s)):
                yield f"cell {number} imports inside other code; put the import in a cell of its own"


def check_forbidden_imports(notebook: dict, kind: str) -> Iterator[str]:
    "torchvision and timm are never needed, and a torchvision that does not match torch breaks lightning-fabric."
    for number, cell in code_cells(notebook):
        for name in forbidden_imports(parsed(cell)):
            yield f"cell {number} imports {name}, which the kit must not need"


def check_ids(notebook: dict, kind: str) -> Iterator[str]:
    "Cell ids appear in the exported modules, so they must exist and differ."
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) < (4, 5):
        yield "the format is older than 4.5 and has no cell ids; open and save it in JupyterLab"
        return
    ids = [cell.get("id") for cell in notebook["cells"]]
    if not all(ids):
        yield f"cell {ids.index(None)} has no id"
    if len(set(ids)) < len(ids):
        yield f"cell ids occur twice: {sorted({str(i) for i in ids if ids.count(i) > 1})}"


def check_clean(notebook: dict, kind: str) -> Iterator[str]:
    "What nbdev_clean removes must not come back: counts and metadata change at every run."
    extra = set(notebook["metadata"]) - {"kernelspec"}
    if extra:
        yield f"notebook metadata {sorted(extra)} are left; run nbdev_clean"
    for number, cell in enumerate(notebook["cells"]):
        if set(cell.get("metadata", {})) - {"tags"} or cell.get("execution_count") is not None:
            yield f"cell {number} has metadata or an execution count; run nbdev_clean"
            return


def check_outputs(notebook: dict, kind: str) -> Iterator[str]:
    "Stored outputs show no one's machine, no failure and no photograph."
    for number, cell in code_cells(notebook):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"cell {number} ended with {output.get('ename')}; mend it and run it again"
            data = output.get("data", {})
            if any(kind_of_data.startswith("image/") for kind_of_data in data) and READS_PICTURE.search(cell["source"]):
                yield f"cell {number} shows a picture that it reads from a file; show the face world or a drawing"
            for text in texts_of(output):
                found = ABSOLUTE_PATH.search(text)
                if found:
                    yield f"cell {number} prints an absolute path ({text[found.start():found.start() + 30]!r}...); print a name or a relative path"
    for number, cell in enumerate(notebook["cells"]):
        if cell.get("attachments") or re.search(r"data:image/", cell["source"]):
            yield f"cell {number} carries an embedded picture; draw it in code"


def check_licensed_faces(notebook: dict, kind: str) -> Iterator[str]:
    "No picture of a licensed face: none that carries its mark, and none at all where licensed faces were opened (see nbs/faces/70_privacy)."
    outputs = [(number, output) for number, cell in code_cells(notebook) for output in cell.get("outputs", [])]
    opened = sorted({name for _, output in outputs if TRACE in output.get("data", {})
                     for name in (output["data"][TRACE] or {}).get("licensed", ["?"])})
    for number, output in outputs:
        contents = contents_of(output)
        marks = set(output.get("metadata", {}).get("au_study", {}).get("licensed", ())).union(*map(marks_in, contents.values()))
        if marks:
            yield f"cell {number} shows licensed faces ({', '.join(sorted(marks))}); clear its output, or draw the face world"
        elif opened and any(shows_picture(*content) for content in contents.items()):
            yield f"cell {number} shows a picture, and the notebook opened licensed faces ({', '.join(opened)}); clear its output, or draw the face world"
        elif opened and any(len(content) > MAX_PRINTED for content in contents.values()):
            yield f"cell {number} prints {max(map(len, contents.values()))} characters, which may be pixels of licensed faces; print less, or clear its output"
    for number, cell in enumerate(notebook["cells"]):
        embedded = cell["source"] + json.dumps(cell.get("attachments", {}))
        if (opened and (cell.get("attachments") or re.search(r"data:image/", embedded))) or marks_in(embedded):
            yield f"cell {number} carries an embedded picture of licensed faces; remove it"
    if opened and notebook["metadata"].get("widgets"):
        yield "the notebook keeps the state of widgets, which may hold licensed faces; clear it (nbdev_clean)"


def check_subject_ids(notebook: dict, kind: str) -> Iterator[str]:
    "Ids of real subjects live in data_manifests/splits alone."
    for number, cell in enumerate(notebook["cells"]):
        for text in (cell["source"], *(t for o in cell.get("outputs", []) for t in texts_of(o))):
            found = SUBJECT_ID.search(text)
            if found:
                yield f"cell {number} names the subject {found[0]}; use ids of your own (S01) or read {MAY_NAME_SUBJECTS}"
                break


def check_opening(notebook: dict, kind: str) -> Iterator[str]:
    "A title and a one-line promise tell a reader within seconds where he is."
    if not notebook["cells"]:
        yield "the notebook is empty"
        return
    first = notebook["cells"][0]
    lines = [line for line in first["source"].splitlines() if line.strip()]
    if first["cell_type"] != "markdown" or not lines or not lines[0].startswith("# "):
        yield "the first cell is not markdown with `# Title`"
    elif len(lines) < 2 or not lines[1].startswith("> "):
        yield "the title is not followed by a one-line promise (`> ...`)"
    elif any(re.match(r"- (?!\w+: ).*:", line) for line in lines[2:]):
        yield "the list in the first cell would be read as front matter; give it a cell of its own"


def check_runs(notebook: dict, kind: str) -> Iterator[str]:
    "No notebook stays out of the tests as a whole."
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] in ("markdown", "raw") and re.search(r"^(?:- )?skip_exec:\s*true", cell["source"], re.M):
            yield f"cell {number} keeps the notebook out of the tests (skip_exec); make it small enough to run"


def check_kind(notebook: dict, kind: str) -> Iterator[str]:
    "Library notebooks export; experiment notebooks have parameters and define nothing."
    default = [cell for _, cell in code_cells(notebook) if "default_exp" in directives(cell)]
    if kind == "library":
        if len(default) != 1:
            yield f"a library notebook names its module once (`#| default_exp`), found {len(default)}"
        if not exported_cells(notebook):
            yield "a library notebook exports something (`#| export`); an experiment belongs in nbs/reproduce"
    elif kind == "experiment":
        tagged = [n for n, cell in code_cells(notebook) if "parameters" in cell.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            yield f"an experiment notebook has one cell tagged `parameters`, found {len(tagged)}"
        if default or exported_cells(notebook):
            yield "an experiment notebook exports nothing; put the code in a library notebook"
        for number, cell in code_cells(notebook):
            if any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for s in parsed(cell) for node in ast.walk(s)):
                yield f"cell {number} of an experiment notebook defines something; put the code in a library notebook"


def check_headings(notebook: dict, kind: str) -> Iterator[str]:
    "Levels go down one at a time."
    level = 0
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^```.*?^```", "", cell["source"], flags=re.M | re.S)
            for found in re.findall(r"^(#+) ", text, re.M):
                if len(found) > level + 1:
                    yield f"cell {number} jumps from heading level {level} to {len(found)}"
                level = len(found)


CHECKS = (check_imports_alone, check_forbidden_imports, check_ids, check_clean, check_outputs, check_licensed_faces, check_subject_ids,
          check_opening, check_kind, check_runs, check_headings)


def lint_notebook(path: Path) -> list[str]:
    "All complaints about one notebook."
    kb = path.stat().st_size / 1000
    complaints = [f"{kb:.0f} KB; at most {MAX_KB} (fewer or smaller figures)"] if kb > MAX_KB else []
    notebook = read(path)
    kind = kind_of(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, notebook)
    for check in CHECKS:
        try:
            complaints += check(notebook, kind)
        except SyntaxError as error:
            return [*complaints, f"a code cell is not Python: {error}"]
    return complaints


# --- checks of the repository --------------------------------------------------------------------------------------------------------

def forbidden_imports(statements: list[ast.stmt]) -> list[str]:
    "Names of forbidden packages that are imported anywhere in the statements."
    nodes = [node for s in statements for node in ast.walk(s)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return sorted({name.split(".")[0] for name in names} & FORBIDDEN_IMPORTS)


def tracked_files(root: Path = ROOT) -> list[str]:
    "Files in git and files that git would add."
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if listed.returncode:  # not a git checkout, such as a downloaded archive
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and not NOT_OURS & set(p.relative_to(root).parts))
    return sorted(name for name in set(listed.stdout.splitlines()) if (root / name).exists())


def check_file(name: str, content: bytes) -> Iterator[str]:
    "One file that is in git or shall be: no picture and nothing that may hold one (but what is kept of a batch of the face world), no mark of licensed faces, and no notebook with them."
    suffix = Path(name).suffix.lower()
    if suffix in PICTURES | HOLDERS and not (KEPT.fullmatch(name) and len(content) <= MAX_KEPT):
        yield f"{name}: pictures, videos, arrays, archives, web pages and weights are made by code, not stored in git"
    elif suffix != ".ipynb":
        marks = marks_in(content) | marks_in(content.decode("utf-8", "replace"))
        if marks:
            yield f"{name} shows licensed faces ({', '.join(sorted(marks))}); remove it, or draw the face world"
    else:
        try:
            notebook = json.loads(content)
            for cell in notebook["cells"]:
                cell["source"] = "".join(cell["source"])
            yield from (f"{name}: {sentence}" for sentence in check_licensed_faces(notebook, ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"{name} cannot be read as a notebook; mend or remove it"


def check_files(root: Path = ROOT) -> Iterator[str]:
    "No pictures or arrays in git (a licensed face could hide in them), no licensed faces in any notebook, no subject ids outside the splits, no forbidden import."
    linted = set(all_notebooks(root))
    for name in tracked_files(root):
        path = root / name
        if path not in linted:
            yield from check_file(name, path.read_bytes())
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".csv", ".json", ".txt"} and not name.startswith(MAY_NAME_SUBJECTS):
            text = path.read_text(encoding="utf-8")
            found = SUBJECT_ID.search(text)
            if found:
                yield f"{name} names the subject {found[0]}; ids of real subjects live in {MAY_NAME_SUBJECTS} alone"
            if path.suffix == ".py" and not name.startswith("au_study/"):  # the notebooks are checked cell by cell
                yield from (f"{name} imports {package}" for package in forbidden_imports(ast.parse(text).body))


def check_staged(root: Path = ROOT) -> Iterator[str]:
    "What git is about to commit, as it lies in the index; the files on disk may have changed since."
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
    for name in git("diff", "--cached", "--name-only", "--diff-filter=ACMRT", "-z").decode("utf-8", "surrogateescape").split("\0"):
        if name:
            yield from check_file(name, git("show", f":{name}"))


def check_exports(root: Path = ROOT) -> Iterator[str]:
    "au_study is what nbdev exports from the notebooks now, no more and no less."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kit"
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "cache", "runs"))
        shutil.copy(root / "settings.ini", copy)
        export = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=copy,
                                capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        if export.returncode:
            yield "nbdev_export fails:\n" + export.stderr[-2000:]
            return
        names = [{str(p.relative_to(base / "au_study")) for p in (base / "au_study").rglob("*.py")} for base in (root, copy)]
        for name in sorted(names[0] - names[1]):
            yield f"au_study/{name} comes from no notebook; remove it"
        for name in sorted(names[1] - names[0]):
            yield f"au_study/{name} is missing; run make export"
        for name in sorted(names[0] & names[1]):
            if not filecmp.cmp(root / "au_study" / name, copy / "au_study" / name, shallow=False):
                yield f"au_study/{name} differs from its notebook; edit the notebook and run make export"


IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("torchvision", "timm", "dlib"): sys.modules[name] = None
import au_study
for module in pkgutil.walk_packages(au_study.__path__, "au_study."):
    try: importlib.import_module(module.name)
    except Exception as error: print(f"import {module.name} fails without torchvision, timm and dlib: {type(error).__name__}: {error}")
"""


def check_module_imports(root: Path = ROOT) -> Iterator[str]:
    "Every module can be imported where torchvision, timm and dlib are absent."
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=root, capture_output=True, text=True)
    yield from result.stdout.splitlines()
    if result.returncode:
        yield result.stderr[-2000:]


def check_readme(root: Path = ROOT) -> Iterator[str]:
    "README.md is nbs/index.ipynb."
    result = subprocess.run([sys.executable, str(root / "tools" / "readme.py"), "--check"], cwd=root, capture_output=True, text=True)
    if result.returncode:
        yield (result.stderr or result.stdout).strip()


def check_ruff(root: Path = ROOT) -> Iterator[str]:
    "Unused names, undefined names and doubtful constructs, in notebooks, tools and tests."
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise", "."], cwd=root,
                            capture_output=True, text=True)
    if result.returncode:
        yield from (result.stdout + result.stderr).strip().splitlines()


REPOSITORY_CHECKS = (check_files, check_ruff, check_readme, check_exports, check_module_imports)


def all_notebooks(root: Path = ROOT) -> list[Path]:
    "Every notebook of the kit in reading order."
    return sorted(p for p in (root / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(root).parts))


def main(names: list[str]) -> int:
    if names == ["--staged"]:
        complaints = list(check_staged())
        if complaints:
            print("\n".join(complaints), "commit refused: it would put licensed faces, or files that may hold them, into the history", sep="\n")
        return bool(complaints)
    start, complaints = time.monotonic(), []
    notebooks = [Path(name).resolve() for name in names] or all_notebooks()
    for path in notebooks:
        complaints += [f"{os.path.relpath(path, ROOT)}: {sentence}" for sentence in lint_notebook(path)]
    if not names:
        for check in REPOSITORY_CHECKS:
            complaints += check()
    for sentence in complaints:
        print(sentence)
    print(f"lint: {len(notebooks)} notebooks{'' if names else ' and the repository'}, "
          f"{len(complaints) or 'no'} complaint{'' if len(complaints) == 1 else 's'}, {time.monotonic() - start:.0f} s")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
