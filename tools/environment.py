"""Make the environment that every make target runs in, or check one that you made yourself.

    python tools/environment.py .venv            make or refresh a virtual environment
    python tools/environment.py --check          is the running interpreter fit for the kit?

Only the standard library is used, since nothing is installed yet when this runs.
"""
from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
IMPORT_NAMES = {"dlib-bin": "dlib", "opencv-python-headless": "cv2", "scikit-learn": "sklearn", "pyyaml": "yaml", "myst-nb": "myst_nb", "beautifulsoup4": "bs4", "pytest-xdist": "xdist"}
TOOLS = {"ruff"}  # used as commands, not imported
COMFORTS = {"jupyterlab", "jupytext", "nbdime"}  # for people; no target needs them
MARK = "au_study-environment"  # file in the environment that says what was installed


def settings() -> dict[str, str]:
    "The packaging facts of settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def requirements(development: bool = True) -> list[str]:
    "All requirements of the kit, and of its development tools."
    facts = settings()
    return facts["requirements"].split() + facts["dev_requirements"].split() * development


def say(text: str) -> None:
    "Print at once, also into a pipe."
    print(text, flush=True)


def fail(text: str) -> None:
    "Stop with a sentence."
    sys.exit(f"au_study: {text}")


def check_version() -> None:
    "Stop unless this Python is one that the kit is tested with."
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        fail(f"Python {platform.python_version()} at {sys.executable} is not supported; {OLDEST[0]}.{OLDEST[1]} to "
             f"{NEWEST[0]}.{NEWEST[1]} is. Choose another: make PYTHON=python3.11 ...")


def fingerprints(constraints: Path) -> list[str]:
    "What an environment depends on, as two hashes: its packages, and the kit's own packaging."
    packages = [constraints.read_text(), *requirements(), sys.version, str(ROOT)]
    itself = [(ROOT / name).read_text() for name in ("settings.ini", "setup.py")]
    return [hashlib.sha256("\0".join(parts).encode()).hexdigest() for parts in (packages, itself)]


def installed_state(venv: Path) -> list[str]:
    "The two hashes that `venv` was completed for; empty if it is absent or was left half-made."
    mark = venv / MARK
    return mark.read_text().split() if mark.exists() and (venv / "bin" / "python").exists() else []


def torch_source() -> list[str]:
    "Extra pip options so that a Linux machine without a GPU does not fetch gigabytes of CUDA libraries."
    chosen = os.environ.get("AU_STUDY_TORCH_INDEX")
    if chosen is not None:
        return ["--extra-index-url", chosen] if chosen else []
    if platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("nvidia-smi"):
        return []
    try:
        urllib.request.urlopen(CPU_TORCH + "/torch/", timeout=4).close()
    except OSError:
        return []
    return ["--extra-index-url", CPU_TORCH]


def install(python: Path, options: list[str], log: Path, expected: int) -> None:
    "Run pip, with its output in a log and one line of progress every ten seconds."
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "--no-compile", *options]
    start = shown = time.monotonic()
    seen = 0
    with log.open("a") as file:
        file.write("$ " + " ".join(command) + "\n")
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=os.environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}) as pip:
            for line in pip.stdout:
                file.write(line)
                seen += line.startswith(("Collecting ", "Processing "))
                if line.startswith("Installing collected") and seen > 1:
                    say(f"      {line.count(',') + 1} packages fetched in {time.monotonic() - start:.0f} s; unpacking them")
                elif time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    say(f"      {seen} of about {expected} packages, {shown - start:.0f} s")
    if pip.returncode:
        lines = [line for line in log.read_text().splitlines() if "ERROR" in line or "error:" in line][-6:]
        fail("pip could not install the packages (full log: " + os.path.relpath(log, ROOT) + ")\n  " + "\n  ".join(lines) +
             "\nIs the package index reachable? Run the same command again after mending it; it goes on where it stopped.")


def make_venv(venv: Path) -> None:
    "An empty virtual environment."
    say("  1/4 virtual environment")
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if result.returncode:
        fail(f"python -m venv failed:\n{result.stdout}{result.stderr}\nOn Debian and Ubuntu: apt install python3-venv.")


def install_packages(venv: Path, constraints: Path) -> None:
    "All requirements at their pinned versions; PyTorch first, since it alone may come from elsewhere."
    python, log, packages = venv / "bin" / "python", venv / "install.log", requirements()
    say("  2/4 PyTorch")
    torch = [r for r in packages if re.match(r"torch\b", r)]
    install(python, ["-c", str(constraints), *torch_source(), *torch], log, expected=30)
    say("  3/4 all other packages, versions from " + constraints.name)
    install(python, ["-c", str(constraints), *packages], log, expected=220)
    compile_packages(python)


def compile_packages(python: Path) -> None:
    "Bytecode of what was installed, on all cores (pip uses one) and without the packages' own tests. What fails to compile is code for other versions of Python."
    folder = subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([str(python), "-m", "compileall", "-q", "-j", "0", "-x", r"[/\\](tests?|testing[/\\]_internal)[/\\]", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def install_itself(venv: Path) -> None:
    "The kit itself, editable, and a check that all installed versions agree."
    python = venv / "bin" / "python"
    say("  4/4 au_study itself (editable) and a check that all versions agree")
    install(python, ["--no-deps", "-e", "."], venv / "install.log", expected=1)
    check = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True)
    if check.returncode:
        fail("the installed versions do not agree:\n" + check.stdout)


def make(venv: Path, constraints: Path) -> None:
    "Make or refresh the virtual environment `venv`; do nothing if it is as it should be."
    check_version()
    wanted, state = fingerprints(constraints), installed_state(venv)
    if state == wanted:
        return
    start = time.monotonic()
    say(f"au_study: setting up {os.path.relpath(venv)} with Python {platform.python_version()}"
        + ("" if state[:1] == wanted[:1] else " (once; about 2 minutes and 2.2 GB)"))
    (venv / MARK).unlink(missing_ok=True)
    if not state:
        make_venv(venv)
    if state[:1] != wanted[:1]:
        install_packages(venv, constraints)
    install_itself(venv)
    (venv / MARK).write_text("\n".join(wanted) + "\n")
    say(f"au_study: environment ready in {time.monotonic() - start:.0f} s")


def version_of(text: str) -> tuple[int, ...]:
    "Leading numbers of a version: (2, 11, 0) for 2.11.0+cu128."
    return tuple(int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3])


def problem_with(requirement: str) -> str | None:
    "Why the running environment does not meet `requirement`, or None."
    name, bounds = re.match(r"([A-Za-z0-9_.-]+)(.*)", requirement).groups()
    module = IMPORT_NAMES.get(name, name.replace("-", "_"))
    if name not in TOOLS and importlib.util.find_spec(module) is None:
        return f"{name} is missing"
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None if name not in TOOLS else f"{name} is missing"  # another distribution provides the module
    compare = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "==": lambda a, b: a == b}
    for sign, bound in re.findall(r"(>=|==|<)([\d.]+)", bounds):
        length = len(version_of(bound))
        if not compare[sign](version_of(installed)[:max(length, 3)], version_of(bound)):
            return f"{name} is {installed}, needed is {name}{bounds}"
    return None


def check(development: bool) -> None:
    "Stop with the list of what is missing unless the running interpreter can serve as the kit's environment."
    check_version()
    needed = [r for r in requirements(development) if re.match(r"[\w.-]+", r)[0] not in COMFORTS]
    problems = [problem for problem in map(problem_with, needed) if problem]
    spec = importlib.util.find_spec("au_study")
    if spec is None or Path(spec.origin or "").resolve().parent != ROOT / "au_study":
        problems.append("au_study is not installed from this folder (pip install --no-deps -e .)")
    if problems:
        fail(f"the environment of {sys.executable} is not complete:\n  " + "\n  ".join(problems) +
             '\nInstall what is missing (pip install -c constraints.txt -e ".[dev]"), or leave AU_STUDY_PYTHON out: '
             "make then builds an environment of its own in .venv.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", nargs="?", default=".venv", help="folder of the virtual environment (default .venv)")
    parser.add_argument("--constraints", default=str(ROOT / "constraints.txt"), help="pinned versions")
    parser.add_argument("--check", action="store_true", help="check the running interpreter; install nothing")
    parser.add_argument("--dev", action="store_true", help="with --check: the tools for tests and documentation as well")
    options = parser.parse_args()
    if options.check:
        check(options.dev)
    else:
        make(Path(options.venv).absolute(), Path(options.constraints).absolute())


if __name__ == "__main__":
    main()
