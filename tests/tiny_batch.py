"A batch of two runs that tests start, stop and kill: its study, its folder, its command line."
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

import au_study.study.warm as warm
from au_study.training.batches import blob_faces

HERE = Path(__file__).parent
TINY = "tiny_estimator:Tiny"

STUDY = """
paper: au_rcnn
table: 5
title: a tiny batch
dataset: blobs
reference: plain
protocol: {split: blobs-2fold, aus: [4, 12], crop: none}
rows:
  plain: {estimator: "tiny_estimator:Tiny", params: {seconds: 0.05}}
  shifted: {estimator: "tiny_estimator:Tiny", params: {seconds: 0.05, shift: 0.5}}
  quoted: {published_only: not ours}
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    "A copy of all that a batch reads: a study's id holds the hash of these files, and they may be edited while the tests run."
    copy = tmp_path_factory.mktemp("check out")
    for part in ("au_study", "data_manifests", "nbs/reproduce", "workflow"): shutil.copytree(HERE.parent / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return copy


def furnish(folder, checkout):
    "A folder with a checkout, data, and a study of two runs in a profile of one fold and one seed."
    (folder / "code").symlink_to(checkout)
    blob_faces(6, 20, seed=1).save(folder / "data" / "blobs")
    (folder / "tiny.yaml").write_text(STUDY)
    (folder / "small.yaml").write_text("title: one fold, one seed\nfolds: [0]\nn_boot: 50\n")
    return folder


def call(place, results, *studies):
    "The command line of a batch."
    return [sys.executable, "-m", "au_study.study.cli", "reproduce", *(str(place / s) for s in studies or ["tiny.yaml"]), "--profile", str(place / "small.yaml"), "--data", str(place / "data"),
            "--results", str(place / results), "--cores", "2"]


def search_path(code): return os.pathsep.join([str(code), str(HERE)])


def unserved():
    "The environment of this process, without the server that it was started by."
    return {name: value for name, value in os.environ.items() if name not in ("AU_STUDY_WARM", "JUPYTER_DEFAULT_PROVISIONER_NAME")}


def environment(place):
    "Of a process that finds the checkout's code; a server of these tests has other code."
    code = str((place / "code").resolve())
    return {**unserved(), "PYTHONPATH": search_path(code), "AU_STUDY_ROOT": code, "AU_STUDY_CACHE": str(place / "cache"), "PYTHONUNBUFFERED": "1"}


def finished(words, cwd, env, cold=True):
    "A command that runs to its end, with whatever it said; forked from the server that `env` names, and started anew only where it may start `cold`."
    with tempfile.TemporaryFile("w+") as said, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AU_STUDY_WARM", env.get("AU_STUDY_WARM", ""))
        process = warm.start(words, stdout=said, cwd=cwd, env=env)
        assert process or cold, "the server serves this"
        process = process or subprocess.Popen(words, stdout=said, stderr=said, cwd=cwd, env=env)
        code = process.wait()
        said.seek(0)
        return subprocess.CompletedProcess(words, code, said.read())


def reproduce(place, results, *studies, server):
    "A batch that runs to its end, nothing of it imported anew."
    return finished(call(place, results, *studies), place, environment(place) | server, cold=False)


@pytest.fixture(scope="session")
def server(checkout, tmp_path_factory):
    "What batches need that nobody is going to kill: one process that has imported everything, for all of them."
    modules = [*warm.needed_modules({TINY}, analyses=False, world=False), "au_study.study.cli", "au_study.study.reproduce", "au_study.study.batch"]
    with warm.warm_server(tmp_path_factory.mktemp("server"), env={**unserved(), "PYTHONPATH": search_path(checkout)}, modules=modules) as added: yield added


def begin(place, results):
    "A batch in the background."
    return subprocess.Popen(call(place, results), env=environment(place), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def below(place):
    "Processes that still work on a results folder."
    def mine(p):
        try: return str(place) in " ".join(p.cmdline()) + p.cwd()
        except psutil.Error: return False
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and mine(p)]


def wait_for(condition, seconds, what):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def tables(place, results):
    return {p.name: p.read_bytes() for p in sorted((place / results / "tables").rglob("tiny.*"))}
