"""Speed of au_study.faces: `python benchmarks/faces.py` prints images/s of augmentation (batch 64, 80 px), alignment, FaceSet and cache on 2 threads."""

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from au_study.facs import schematic_face
from au_study.faces import CropCache, DatasetCard, FaceSet, FivePointCrop, LandmarkBoxCrop, ProcrustesCrop, check_frames, crop_faces
from au_study.faces.augment import Augment


def rate(work, items, repeats=7):
    "Items a second of the fastest of several calls, and items per second of CPU time (which a busy machine changes little)."
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        work(); times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = (items / max(min(t), 1e-9) for t in zip(*times, strict=True))
    return f"{wall:12.0f} /s  {cpu:12.0f} /CPU s"


def augmentation(batch=64, size=80):
    "Each operation alone and AUNet's set."
    g = torch.Generator().manual_seed(0)
    images, points = torch.rand(batch, 3, size, size, generator=g), torch.from_numpy(schematic_face(size)).repeat(batch, 1, 1)
    sets = dict(flip=dict(), affine=dict(rotation=15, shift=.04, scale=.25), blur=dict(flip=0, blur=1.), jpeg=dict(flip=0, jpeg=1.), dropout=dict(flip=0, dropout=1.),
                aunet=dict(rotation=15, shift=10 / 256, scale=.25, blur=.5, jpeg=.5, dropout=.5))
    for name, parameters in sets.items():
        augment = Augment(**parameters)
        print(f"augment {name:8s} {rate(lambda: augment(images, points, seed=1), batch)} images")


def alignment(n=64):
    "Cropping from a BP4D-sized image and from a small one; matrices alone."
    for height, width, face in ((1392, 1040, 560), (256, 256, 150)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        points = np.tile(schematic_face(face) + [width / 4, height / 4], (n, 1, 1))
        for recipe in (FivePointCrop(80), FivePointCrop(256), LandmarkBoxCrop(512), ProcrustesCrop(80)):
            print(f"crop {height}x{width} {recipe.id:45s} {rate(lambda: crop_faces([image] * n, points, recipe), n)} faces")
    many = np.tile(schematic_face(100), (20000, 1, 1))
    print(f"matrices five-point {rate(lambda: FivePointCrop(80).matrices(many), 20000)} faces")


def tables(n=146_847):
    "The door of a table of BP4D's size, fold and neighbours of a FaceSet, and the cache."
    frames = pd.DataFrame({"subject": [f"F{i * 41 // n:03d}" for i in range(n)], "video": [f"T{i * 328 // n % 8}" for i in range(n)], "frame": np.arange(n)})
    frames = frames.assign(**{f"AU{a}": 1.0 for a in (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)})
    print(f"check_frames {rate(lambda: check_frames(frames), n, 3)} rows")
    card = DatasetCard("b", "b", (1, 12), 1, "intensity", 25, (tuple(f"F{i:03d}" for i in range(14)),), True, "none")
    faces = FaceSet(frames, np.zeros((n, 8, 8, 3), np.uint8), np.zeros((n, 68, 2), np.float32), card)
    print(f"fold {rate(lambda: faces.fold(0), n, 3)} rows   neighbours {rate(lambda: faces.neighbours(10), n, 3)} rows")
    batch = np.zeros((64, 200, 200, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with CropCache(Path(folder) / "c", 200) as cache:
            for _ in range(40): cache.append(batch)
            cache.finish()
        print(f"cache {2560 / (time.perf_counter() - start):10.0f} crops/s of 200 px")


if __name__ == "__main__":
    torch.set_num_threads(2); cv2.setNumThreads(2)
    augmentation(); alignment(); tables()
