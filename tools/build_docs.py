"""Build the documentation into _docs, offline: nbdev's processors write the pages, Sphinx with MyST-NB and furo draws them.

    python tools/build_docs.py

Warnings are errors; all are shown. Where Quarto is installed, `nbdev_docs` builds nbdev's own site from the same notebooks.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lint_notebooks import all_notebooks, check_licensed_faces, read

ROOT = Path(__file__).resolve().parent.parent
PROCESSED, SOURCE, SITE = ROOT / "_proc", ROOT / "build" / "docs_source", ROOT / "_docs"
PARTS = {  # heading of the navigation -> what stands under it, in this order; a new folder joins the last part until it is named here
    "Tutorials": ["tutorials"],
    "Ground floor": ["facs", "atlas", "files", "faces", "world", "datasets", "nets", "scoring", "training"],
    "Papers": ["au_rcnn", "re_net", "aunet", "pairwise", "static_dynamic"],
    "Studies": ["study", "reproduce", "evidence"],
    "About the kit": []}
CHAPTERS = {"tutorials": "Tutorials", "faces": "Faces", "world": "The face world", "datasets": "Data sets", "nets": "Networks", "scoring": "Scoring", "training": "Training",
            "au_rcnn": "AU R-CNN", "re_net": "RE-Net", "aunet": "AUNet", "pairwise": "Pairwise", "static_dynamic": "Static and dynamic",
            "study": "Study", "reproduce": "Experiments", "evidence": "Evidence"}


# --- from nbdev's pages to pages that MyST-NB understands ----------------------------------------------------------------------------

def front_matter(cells: list[dict]) -> dict[str, str]:
    "Title, description and file name, from the raw cell that nbdev puts first."
    import yaml
    for cell in cells:
        if cell["cell_type"] == "raw" and text(cell).startswith("---"):
            return yaml.safe_load(text(cell).strip().strip("-")) or {}
    return {}


def text(cell: dict) -> str:
    "A cell's source as one string."
    return "".join(cell["source"])


def page_name(path: Path, cells: list[dict]) -> str:
    "Name of a page without its number: faces/frames for faces/10_frames.ipynb."
    file = front_matter(cells).get("output-file", path.stem + ".html")
    return str(path.parent / Path(file).stem).removeprefix("./")


def label(page: str, name: str) -> str:
    "Target of an API entry; targets do not know case, so a capital is marked (Augment and augment may share a page)."
    return "api-" + re.sub(r"[./]", "-", page) + "-" + re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), name).replace(".", "-")


CODE = r"^```.*?^```|`[^`\n]*`"  # a block, or within a line
LINK = r"(?<!!)\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)?)\]\(([^)#\s]*)(#[^)\s]*)?\)"  # words, target, anchor


class Linker:
    "Rewrites the links of one page."

    def __init__(self, page: str, pages: dict[str, str], labels: set[str], base: str):
        self.page, self.pages, self.labels, self.base = page, pages, labels, base

    def relative(self, target: str) -> str:
        "Path from this page to another."
        return os.path.relpath(target, Path(self.page).parent) + ".ipynb"

    def link(self, match: re.Match) -> str:
        "One link, rewritten; a target outside the site that is only a file of the repository becomes plain text."
        words, target, anchor = match[1], match[2], match[3] or ""
        if target.startswith(self.base):
            page = target.removeprefix(self.base).strip("/").removesuffix(".html")
            entry = label(page, anchor.lstrip("#"))
            if entry in self.labels:
                return f"[{words}](#{entry})"
            return f"[{words}]({self.relative(page)})" if page in self.pages.values() else words
        if re.match(r"https?:", target):
            foreign = words.startswith("`") and re.match(r"https?://[\w.-]*(fast\.ai|answer\.ai|github\.io)/", target)
            return words if foreign else match[0]  # nbdev links `name` to any nbdev project that has one; ours are meant
        if not target:
            return match[0]
        source = os.path.normpath(os.path.join(os.path.dirname(self.page), target))
        if source in self.pages:
            return f"[{words}]({self.relative(self.pages[source])}{anchor})"
        return words

    def __call__(self, markdown: str) -> str:
        markdown = re.sub(r"\{target=[^}]*\}", "", markdown)
        markdown = re.sub(f"{CODE}|{LINK}", lambda m: m[0] if m[1] is None else self.link(m), markdown, flags=re.M | re.S)     # whichever begins first
        return our_choice(markdown)


def our_choice(markdown: str) -> str:
    "Blockquotes that open with `Our choice:` become boxes of their own."
    def box(match: re.Match) -> str:
        body = re.sub(r"^> ?", "", match[0], flags=re.M).removeprefix("Our choice:").strip()
        return f":::{{admonition}} Our choice\n:class: our-choice\n\n{body}\n:::\n"
    return re.sub(r"^> Our choice:.*\n?(?:^>.*\n?)*", box, markdown, flags=re.M)


def last_level(markdown: str, before: int) -> int:
    "Level of the last heading in a text, or the one before it."
    found = re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S), re.M)
    return len(found[-1]) if found else before


def api_entry(cell: dict, page: str, linker: Linker, level: int) -> str:
    "Markdown of a `show_doc` cell: its stored output, with a target before its heading (of at most `level`) and without the source link."
    parts = []
    for output in cell["outputs"]:
        markdown = "".join(output.get("data", {}).get("text/markdown", "") or output.get("text", ""))
        markdown = re.sub(r"^\[source\]\(.*\n*", "", markdown, flags=re.M)
        parts.append(re.sub(r"^(#{2,4}) (\S+)\s*$", lambda m: f"({label(page, m[2])})=\n{m[1][:level]} {m[2]}\n", markdown, count=1, flags=re.M))
    return linker("\n\n".join(parts))


def is_entry(cell: dict) -> bool:
    "Whether a code cell is a `show_doc`."
    return cell["cell_type"] == "code" and bool(re.search(r"^#\|\s*output:\s*asis", text(cell), re.M))


def code_cell(cell: dict) -> dict | None:
    "A code cell without nbdev's and Quarto's directives; exported code is folded."
    source = text(cell)
    folded = bool(re.search(r"^#\|\s*code-fold:\s*true", source, re.M))
    unseen = bool(re.search(r"^#\|\s*echo:\s*false", source, re.M))
    source = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    outputs = [o for o in cell.get("outputs", []) if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
    if not source and not outputs:
        return None
    tags = ["hide-input"] * folded + ["remove-input"] * unseen
    return {"cell_type": "code", "metadata": {"tags": tags}, "execution_count": None, "source": source, "outputs": outputs}


def markdown_cell(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def convert(cells: list[dict], page: str, linker: Linker) -> list[dict]:
    "The cells of one page."
    facts = front_matter(cells)
    opening = f"# {facts.get('title', Path(page).name)}" + (f"\n\n*{facts['description']}*" if facts.get("description") else "")
    result, level = [markdown_cell(linker(opening))], 1
    for cell in cells:
        if is_entry(cell):
            result.append(markdown_cell(api_entry(cell, page, linker, level=min(level + 1, 3))))
        elif cell["cell_type"] == "code":
            converted = code_cell(cell)
            if converted:
                result.append(converted)
        elif cell["cell_type"] == "markdown" and not text(cell).startswith("<!-- WARNING"):
            result.append(markdown_cell(linker(text(cell))))
            level = last_level(text(cell), level)
    return result


# --- navigation ------------------------------------------------------------------------------------------------------------------------

def toctree(entries: list[str], caption: str | None = None, hidden: bool = True, depth: int = 2) -> str:
    "A table of contents."
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [f":maxdepth: {depth}"]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def navigation(pages: dict[str, str]) -> dict[str, list[str]]:
    "Part of the site -> its top pages in reading order: a chapter's index stands for the chapter."
    numbered = sorted((source, page) for source, page in pages.items() if "/" not in source and page != "index")
    chapters = sorted({source.split("/")[0] for source in pages if "/" in source})
    tops = {page: page for _, page in numbered} | {chapter: f"{chapter}/index" for chapter in chapters}
    parts = {part: [tops.pop(name) for name in names if name in tops] for part, names in PARTS.items()}
    parts["About the kit"] += tops.values()
    return {part: names for part, names in parts.items() if names}


def write_page(page: str, cells: list[dict]) -> None:
    "A page as a notebook, whose cell ids are only needed by the format."
    path = SOURCE / f"{page}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
              "language_info": {"name": "python", "pygments_lexer": "ipython3", "file_extension": ".py", "mimetype": "text/x-python"}}
    numbered = [cell | {"id": f"c{number:03d}"} for number, cell in enumerate(cells)]
    path.write_text(json.dumps({"cells": numbered, "metadata": python, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


def write_source(base: str) -> int:
    "All pages with their navigation; the number of notebooks."
    notebooks = {str(p.relative_to(PROCESSED)): json.loads(p.read_text(encoding="utf-8"))["cells"] for p in sorted(PROCESSED.rglob("*.ipynb"))}
    pages = {source: page_name(Path(source), cells) for source, cells in notebooks.items()}
    labels = {label(pages[source], name) for source, cells in notebooks.items() for cell in cells if is_entry(cell)
              for name in re.findall(r"^#{2,4} (\S+)\s*$", "".join("".join(o.get("data", {}).get("text/markdown", "") or o.get("text", ""))
                                                                    for o in cell["outputs"]), re.M)}
    shutil.rmtree(SOURCE, ignore_errors=True)
    converted = {pages[source]: convert(cells, pages[source], Linker(pages[source], pages, labels, base)) for source, cells in notebooks.items()}
    for chapter in {page.split("/")[0] for page in converted if "/" in page}:
        title = CHAPTERS.get(chapter, chapter.replace("_", " ").capitalize())
        members = [pages[source].split("/", 1)[1] for source in sorted(pages) if source.startswith(chapter + "/") and pages[source] != f"{chapter}/index"]
        own = converted.setdefault(f"{chapter}/index", [markdown_cell(f"# {title}")])
        if members:
            listed = "".join(text(cell) for cell in own if cell["cell_type"] == "markdown")
            whole = all(re.search(rf"\]\({re.escape(m)}\.ipynb[)#]", listed) for m in members)  # the page lists its chapter by itself
            own.append(markdown_cell("## Pages of this chapter\n\n" * (not whole) + toctree(members, hidden=whole, depth=1)))
    front = converted.setdefault("index", [markdown_cell("# au_study")])
    front += [markdown_cell(toctree(entries, caption=part)) for part, entries in navigation(pages).items()]
    for page, cells in converted.items():
        write_page(page, cells)
    return len(notebooks)


# --- the build ---------------------------------------------------------------------------------------------------------------------------

def main() -> None:
    os.chdir(ROOT)
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs
    start = time.monotonic()
    licensed = [f"{path.relative_to(ROOT)}: {sentence}" for path in all_notebooks() for sentence in check_licensed_faces(read(path), "")]
    if licensed:
        sys.exit("docs: " + "\n".join(licensed))
    print("docs 1/3: nbdev's processors (they run exported cells to read the signatures)", flush=True)
    shutil.rmtree(PROCESSED, ignore_errors=True)
    try:
        proc_nbs(n_workers=min(2, os.cpu_count() or 1), force=True)
    except Exception as error:  # a notebook whose imports or exported cells do not run
        cause = [line for line in str(error.__cause__ or "").strip(' "\n').splitlines() if re.match(r"\w*(\.\w+)*(Error|Exception)\b", line)]
        sys.exit("docs: " + "\n".join([str(error), *cause[:1]]))
    print(f"docs 2/3: pages and navigation ({time.monotonic() - start:.0f} s)", flush=True)
    facts = get_config()
    count = write_source(facts.doc_host + facts.doc_baseurl)
    print(f"docs 3/3: Sphinx ({time.monotonic() - start:.0f} s)", flush=True)
    shutil.rmtree(SITE, ignore_errors=True)
    sphinx = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", "-c", "tools/sphinx", "-d", "build/doctrees",
                             str(SOURCE), str(SITE)])
    if sphinx.returncode:
        sys.exit("docs: the messages above are faults in the notebooks they name (build/docs_source mirrors nbs); mend them and repeat")
    (SITE / ".nojekyll").touch()
    print(f"docs: {count} notebooks, {time.monotonic() - start:.0f} s: open {SITE.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()
