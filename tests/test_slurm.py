"The Slurm profile on a real Slurm of one node, started in a temporary folder: what it submits, and a batch that ends in the tables of a local one."
import getpass
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_batch import call, checkout, environment, furnish, tables, wait_for  # noqa: F401

from au_study.study.batch import snakemake_command
from au_study.study.manifests import project_root

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "unshare")
PROFILE = project_root() / "workflow/profiles/slurm/config.yaml"
STUDY = """
paper: au_rcnn
title: a tiny batch on a cluster
dataset: blobs
protocol: {split: blobs-2fold, aus: [4, 12], crop: none}
rows:
  plain: {estimator: "tiny_estimator:Tiny"}
  shifted: {estimator: "tiny_estimator:Tiny", params: {shift: 0.5}}
"""


def seen(folder, *command):
    "A command for which `folder` is /etc/slurm; nobody else sees that. (Jobs lose the environment variable that would name another place.)"
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/slurm && exec "$@"', str(folder), *map(str, command)]


def inside(folder, *command, **more): return subprocess.run(seen(folder, *command), capture_output=True, text=True, **more)


def lacking():
    "Why this machine can't run the test; empty: it can."
    gone = [d for d in DAEMONS if not (shutil.which(d) or shutil.which(d, path="/usr/sbin:/sbin"))]
    if gone: return f"no {', '.join(gone)} (Debian: apt install slurmctld slurmd slurm-client munge)"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None: return "no snakemake-executor-plugin-slurm (pip install it)"
    if os.getuid(): return "only root may start slurmd and mount its configuration"
    if not Path("/etc/slurm").is_dir(): return "no /etc/slurm, over which the configuration is mounted"
    if inside(Path("/etc"), "true").returncode: return "this machine forbids private mounts"
    return ""


def test_the_profile_asks_for_what_the_plan_says_and_leaves_the_cluster_to_its_scheduler(tmp_path):
    content = yaml.safe_load(PROFILE.read_text())
    assert content["executor"] == "slurm" and content["keep-going"] and content["rerun-triggers"] == "mtime" and content["ignore-incomplete"]
    assert not {"slurm_extra", "slurm_account", "slurm_partition"} & set(content["default-resources"]), "what isn't known of a cluster is left out"
    away, here = (snakemake_command(tmp_path / "plan.json", tmp_path, 2, e) for e in ("slurm", "local"))
    assert "--cores" in here and "--cores" not in away and "--resources" not in away, "the cores of the login node are no bound for the cluster"
    assert "executor=slurm" in away and away[away.index("--workflow-profile") + 1] == str(PROFILE.parent)


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_a_job_asks_for_what_it_uses(tmp_path, executor):
    kinds = {"sums": ("scores", "table", False), "curve": ("analysis", "analysis", False), "clock": ("analysis", "analysis", True)}
    plan = {"threads": 3, "devices": 2, "data": {}, "runs": {"one": {"data": "made", "before": []}},
            "studies": {n: {"kind": k, "notebook": b, "alone": a, "data": [], "rows": {}} for n, (k, b, a) in kinds.items()}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "work/done/data").mkdir(parents=True)
    (tmp_path / "work/done/data/made").touch()
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "workflow/Snakefile"), "--directory", str(tmp_path), "--cores", "16", "--dry-run",
            "--config", f"plan={tmp_path / 'plan.json'}", f"executor={executor}"]
    said = subprocess.run(call, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    jobs = [block for block in said.stdout.split("\nrule ") if block.startswith(("run:", "study:"))]

    def number(pattern, job, default=1): return int((re.search(pattern, job) or {1: default})[1])
    asked = {re.search(r"wildcards: \w+=(\w+)", job)[1]: (number(r"threads: (\d+)", job), number(r"gpu=(\d+)", job, 0)) for job in jobs}
    assert asked == {"one": (6, 2), "sums": (1, 0), "curve": (3, 0), "clock": (16 if executor == "local" else 3, 1)}


CONFIG = """
ClusterName=alone
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n):
    held = [socket.socket() for _ in range(n)]
    for s in held: s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held: s.close()
    return ports


@pytest.fixture
def slurm(tmp_path):
    "A Slurm of one node with two pretended GPUs; yields its folder."
    if lacking(): pytest.skip(lacking())
    folder, started = tmp_path / "slurm", []
    for part in ("state", "spool"): (folder / part).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=socket.gethostname().split(".")[0], user=getpass.getuser(), ports=free_ports(2)))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}

    def start(*command): started.append(subprocess.Popen(seen(folder, *command), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        start("munged", "--foreground", f"--key-file={folder}/key", f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
              f"--seed-file={folder}/seed", "--force")
        wait_for((folder / "munge.sock").exists, 30, "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D")

        def idle(): return "idle" in inside(folder, "sinfo", "-h", "-o", "%T", env=env).stdout
        wait_for(idle, 60, "Slurm's node; its logs:\n" + "\n".join(p.read_text()[-800:] for p in folder.glob("*.log")))
        yield folder
    finally:
        inside(folder, "scancel", "--user", getpass.getuser(), env=env)
        for process in reversed(started): process.terminate()
        for process in started:
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill(); process.wait()


def test_a_batch_on_slurm_gives_the_tables_of_a_local_one(tmp_path, checkout, slurm):  # noqa: F811
    # the shipped profile, with what a site adds: less memory than the profile asks for, no accounting, a fast file system
    shutil.copytree(checkout, code := tmp_path / "own")
    place = furnish(tmp_path, code)
    site = yaml.safe_load(PROFILE.read_text()) | {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 2, "latency-wait": 5, "slurm-keep-successful-logs": True}
    site["default-resources"] |= {"mem_mb": 1000, "runtime": 10}
    (code / "workflow/profiles/site").mkdir()
    (code / "workflow/profiles/site/config.yaml").write_text(yaml.safe_dump(site))
    (place / "tiny.yaml").write_text(STUDY)
    own = environment(place)
    env = {**own, "PYTHONPATH": os.pathsep.join(filter(None, [own["PYTHONPATH"], os.environ.get("PYTHONPATH")]))}
    done = inside(slurm, *call(place, "cluster"), "--executor", "site", env=env, cwd=place, timeout=1200)
    log = place / "cluster/logs/snakemake.log"
    said = done.stdout + done.stderr + (log.read_text()[-3000:] if log.exists() else "")
    assert done.returncode == 0, said
    jobs = inside(slurm, "squeue", "--states=all", "-h", "-O", "State:20,tres-per-job:40,Comment:300").stdout.splitlines()
    states, gpus = [j.split()[0] for j in jobs], [j for j in jobs if "gpu:1" in j.split()[1]]
    assert len(jobs) == 4 and set(states) == {"COMPLETED"}, jobs          # one data set, two runs, one table; the report is made on the login node
    assert len(gpus) == 2 and all("rule_run" in j for j in gpus), jobs
    local = subprocess.run(call(place, "local"), env=env, cwd=place, capture_output=True, text=True, timeout=1200)
    assert local.returncode == 0, local.stdout + local.stderr
    assert tables(place, "cluster") == tables(place, "local") != {}
