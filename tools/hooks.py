"""Install git hooks in this clone, and nothing outside it: nbdev's, which merge notebooks, and one that keeps licensed faces out of commits.

`nbdev_install_hooks` makes git merge notebooks cell by cell (.gitattributes, .gitconfig, a post-merge hook). It also writes pre-save hooks into
~/.jupyter, which would act in every Jupyter of the user. Here its home is an empty folder, so these stay away.
"""
from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = "# au_study: no licensed faces in a commit"
PRE_COMMIT = f"""#!/bin/sh
{OURS} (tools/lint_notebooks.py --staged). Installed by make hooks.
python={{python}}
tool="$(git rev-parse --show-toplevel)/tools/lint_notebooks.py"
[ -f "$tool" ] || exit 0
[ -x "$python" ] || python=python3
exec "$python" "$tool" --staged
"""


def install_pre_commit(root: Path = ROOT) -> str:
    "Write the hook that looks at what is about to be committed; a sentence that says what was done."
    def ask(*arguments):
        return (root / subprocess.run(["git", "rev-parse", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()).resolve()
    hook, own = ask("--git-path", "hooks") / "pre-commit", ask("--git-common-dir")
    line = f'"{sys.executable}" tools/lint_notebooks.py --staged || exit 1'
    if not hook.is_relative_to(own) and not hook.is_relative_to(root.resolve()):
        sys.exit(f"hooks: git takes its hooks from {hook.parent} (core.hooksPath), which serves other clones, too. Add this line to its pre-commit:\n       {line}")
    if hook.exists() and OURS not in hook.read_text(encoding="utf-8", errors="replace"):
        sys.exit(f"hooks: there is a pre-commit hook of yours already ({hook}). Add this line to it:\n       {line}")
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(PRE_COMMIT.format(python=shlex.quote(sys.executable)), encoding="utf-8")
    hook.chmod(0o755)
    return "hooks: a commit that would hold a licensed face is refused from now on (pre-commit; git commit --no-verify goes past it)."

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
    print(install_pre_commit())
