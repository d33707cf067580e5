"""Write README.md from nbs/index.ipynb, as nbdev_readme does, but without Quarto.

    python tools/readme.py            write it
    python tools/readme.py --check    stop with a sentence if it is not up to date
"""
from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme_of(notebook: dict, folder: str = "nbs") -> str:
    "Markdown of a notebook: its text, its code as fenced blocks, its printed output; cells without visible code and figures left out."
    parts = ["<!-- Written from nbs/index.ipynb by `make readme`; edit the notebook. -->"]
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!https?:|#|\.\./)([\w./-]+)(#[\w-]*)?\)", rf"]({folder}/\1\2)", source).replace("](../", "]("))
        elif cell["cell_type"] == "code" and source and not re.search(r"^#\|\s*(hide|default_exp|echo:\s*false)", source, re.M):
            code = re.sub(r"^#\|.*\n", "", source, flags=re.M)
            parts.append(f"```python\n{code}\n```")
            for output in cell["outputs"]:
                text = output.get("text") or output.get("data", {}).get("text/plain", "")
                if text:
                    parts.append("```text\n" + "".join(text).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    text = readme_of(json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8")))
    readme = ROOT / "README.md"
    if "--check" in sys.argv:
        if not readme.exists() or readme.read_text(encoding="utf-8") != text:
            sys.exit("README.md is not what nbs/index.ipynb says; run make readme")
    else:
        readme.write_text(text, encoding="utf-8")
        print("README.md written from nbs/index.ipynb")


if __name__ == "__main__":
    main()
