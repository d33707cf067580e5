"""Install nbdev's git hooks in this clone, and nothing outside it.

`nbdev_install_hooks` makes git merge notebooks cell by cell (.gitattributes, .gitconfig, a post-merge hook). It also writes pre-save hooks into
~/.jupyter, which would act in every Jupyter of the user. Here its home is an empty folder, so these stay away.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    if not (ROOT / ".git").exists():
        sys.exit("hooks: this folder is not a git clone")
    with tempfile.TemporaryDirectory() as home:
        run = subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_install_hooks; nbdev_install_hooks()"], cwd=ROOT,
                             env={"GIT_CONFIG_GLOBAL": os.path.expanduser("~/.gitconfig")} | os.environ | {"HOME": home}, capture_output=True, text=True)
    if run.returncode:
        sys.exit("hooks: nbdev_install_hooks failed\n" + run.stderr[-2000:])
    print("hooks: git now merges notebooks cell by cell in this clone (.gitattributes, .gitconfig, .git/hooks/post-merge).\n"
          "       Merge with the environment active (source .venv/bin/activate): the hooks call nbdev_merge and nbdev_trust.")
