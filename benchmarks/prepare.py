"""Speed and memory of au_study.datasets.prepare with given landmarks: `python benchmarks/prepare.py` compares it with one process that calls OpenCV frame by frame.

The naive loop does for each frame: cv2.imread, cv2.warpAffine with a known matrix, cv2.imwrite of one JPEG. `prepare` gets the same files and landmarks, two processes, and
ends with a FaceSet on disk. Both run in turn, and the ratio of the medians is printed, for the wall clock and for the processor: on two free cores the wall clock gains up to twice what
the processor gains, on busy ones less. The load of the machine is printed beside them. `python benchmarks/prepare.py long` takes longer trees.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from au_study.datasets.base import Recording
from au_study.datasets.media import ImageFolder
from au_study.datasets.prepare import prepare
from au_study.faces.alignment import FivePointCrop
from au_study.faces.faceset import DatasetCard
from au_study.world.identity import identities
from au_study.world.renderer import Scene, render_faces

CASES = {  # name: (width, height, JPEG quality, crop, frames); frames of four recordings together, of one where the name says so
    "BP4D picture 1040x1392, crop 256": (1040, 1392, 85, 256, 1200),
    "BP4D picture 1040x1392, quality 95, crop 200": (1040, 1392, 95, 200, 800),
    "DISFA picture 1024x768, crop 256": (1024, 768, 90, 256, 1600),
    "DISFA picture 1024x768, crop 128": (1024, 768, 90, 128, 1600),
    "picture 512x512, crop 256": (512, 512, 90, 256, 2000),
    "world tree 384x512, crop 256": (384, 512, 92, 256, 2000),
    "world tree 192x256, crop 256": (192, 256, 92, 256, 3000),
    "world tree 192x256, crop 256, one recording": (192, 256, 92, 256, 3000),
    "world tree 192x256, crop 256, short": (192, 256, 92, 256, 400),
    "world tree 192x256, crop 128": (192, 256, 92, 128, 3000),
}


class Folders:
    "One subject, four videos of hard-linked pictures, landmarks in memory."
    name, columns, problems, label_folders, videos = "benchmark", ["AU1"], [], (), ("T1", "T2", "T3", "T4")

    def __init__(self, root, landmarks, frames): self.root, self.landmarks, self.frames = Path(root), landmarks, frames
    def recordings(self): return [Recording("S1", v, ("none",), ImageFolder(self.root / v, self.root)) for v in self.videos]
    def read_labels(self, r): return pd.DataFrame(dict(subject="S1", video=r.video, frame=range(1, self.frames + 1), AU1=0.0)), []
    def read_landmarks(self, r, numbers): return dict.fromkeys(map(int, numbers), self.landmarks)
    def card(self, **options): return DatasetCard("benchmark", "Benchmark", (1,), 1, "occurrence", 25, (("S1",),), True, "rendered")


def draw(root, width, height, quality, frames, videos=4):
    "A rendered face with camera noise as JPEG, linked under all names; returns the data set."
    Folders.videos = tuple(f"T{i + 1}" for i in range(videos))
    side = max(width, height)
    r = render_faces(identities([1]), torch.zeros(1, 17), Scene.neutral(1), size=side)
    x, y = (side - width) // 2, (side - height) // 2
    image = r.images[0].numpy()[y:y + height, x:x + width, ::-1].astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 1, image.shape).round().astype(np.int16)
    code = cv2.imencode(".jpg", np.clip(image + noise, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    for v in Folders.videos:
        (root / v).mkdir(parents=True)
        for i in range(1, frames // len(Folders.videos) + 1):
            path = root / v / f"{i:05d}.jpg"
            if i % 50 == 1: path.write_bytes(code); last = path  # some copies, so that not everything is one file
            else: os.link(last, path)
    return Folders(root, r.landmarks[0].numpy() - [x, y], frames // len(Folders.videos)), len(code)


def naive(data, crop, out):
    "What one writes first."
    out.mkdir()
    matrix = FivePointCrop(crop).matrices(data.landmarks[None])[0]
    for v in data.videos:
        for i in range(1, data.frames + 1):
            image = cv2.imread(str(data.root / v / f"{i:05d}.jpg"))
            cv2.imwrite(str(out / f"{v}_{i:05d}.jpg"), cv2.warpAffine(image, matrix, (crop, crop)))


def cpu():
    "CPU seconds of this process and of its ended children."
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def timed(work):
    start = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - start[0], cpu() - start[1]


def throughput(jobs=2, repeats=3, times_longer=1):
    "Frames a second of both, for each case."
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} before")
    print(f"{'':56} {'naive':>9} {'prepare':>9}    wall     CPU {'CPU ms a frame':>16}  load")
    for name, (width, height, quality, crop, frames) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder, frames = Path(folder), frames * times_longer
            data, size = draw(folder / "pictures", width, height, quality, frames, 1 if "one recording" in name else 4)
            times = {"naive": [], "prepare": []}
            for k in range(repeats):
                times["naive"].append(timed(lambda: naive(data, crop, folder / f"naive{k}")))
                times["prepare"].append(timed(lambda: prepare(data, folder / f"set{k}", size=crop, jobs=jobs, progress=False)))
                for made in ("naive", "set"): shutil.rmtree(folder / f"{made}{k}")
            (slow, slow_cpu), (fast, fast_cpu) = (np.median(t, axis=0) for t in times.values())
            rates = f"{frames / slow:7.0f}/s {frames / fast:7.0f}/s  x{slow / fast:5.2f}  x{slow_cpu / fast_cpu:5.2f}"
            print(f"{name + f', {size // 1000} kB':56} {rates}  {slow_cpu / frames * 1e3:6.2f} -> {fast_cpu / frames * 1e3:5.2f}  {os.getloadavg()[0]:4.1f}", flush=True)


def memory():
    "Peak memory of parent and worker for a video and for one ten times longer."
    for frames in (200, 2000):
        with tempfile.TemporaryDirectory() as folder:
            said = subprocess.run([sys.executable, __file__, "--one", folder, str(frames)], capture_output=True, text=True, check=True).stdout.split()
            print(f"memory, {frames:5d} frames of 512x512 a video, crop 256: parent {int(said[0]) / 1024:.0f} MB, worker {int(said[1]) / 1024:.0f} MB")


def one(folder, frames):
    "Prepare one video in a process of its own and print the peaks."
    torch.set_num_threads(1)
    data, _ = draw(Path(folder) / "pictures", 512, 512, 90, int(frames), videos=1)
    code = "import resource, sys; sys.path.insert(0, sys.argv[1]); import prepare as b, numpy as np; b.Folders.videos = ('T1',)\n"
    code += "b.prepare(b.Folders(sys.argv[2] + '/pictures', np.load(sys.argv[2] + '/marks.npy'), int(sys.argv[3])), sys.argv[2] + '/set', jobs=1, progress=False)\n"
    code += "print(*(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
    np.save(Path(folder) / "marks.npy", data.landmarks)
    print(subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), folder, frames], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]: one(*sys.argv[2:])
    else: throughput(times_longer=3 if "long" in sys.argv[1:] else 1); memory()
