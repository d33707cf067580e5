"""What crosses the notebooks of au_study.faces: crops through a cache into a FaceSet, kills, and detectors behind one interface."""

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from au_study.facs import schematic_face
from au_study.faces import DatasetCard, DlibDetector, FaceSet, FaceSetError, FivePointCrop, GivenLandmarks, CropCache, KEYS, crop_faces

CARD = DatasetCard("toy", "Toy", aus=(1, 12), threshold=2, kind="intensity", fps=25, folds=(("A",), ("B", "C")), synthetic=True, licence="public domain")


def toy(n_frames=12, size=24):
    "A FaceSet of three subjects whose crops encode the row."
    frames = pd.DataFrame([(s, v, f) for s in "ABC" for v in ("T1", "T2") for f in range(n_frames)], columns=KEYS)
    rng = np.random.default_rng(0)
    frames[["AU1", "AU12"]] = rng.integers(0, 6, (len(frames), 2)).astype(float)
    crops = np.broadcast_to(np.arange(len(frames), dtype=np.uint8)[:, None, None, None], (len(frames), size, size, 3)).copy()
    return FaceSet(frames, crops, np.tile(schematic_face(size), (len(frames), 1, 1)), CARD)


def test_faceset_survives_disk_slicing_and_saving_again(tmp_path):
    faces = toy()
    loaded = FaceSet.load(faces.save(tmp_path / "a"), verify=True)
    train, test = loaded.fold(0)
    assert isinstance(loaded.crops, np.memmap) and np.shares_memory(test.crops, loaded.crops)
    odd = loaded[np.arange(len(loaded)) % 3 == 1][[0, 2, 5]]
    again = FaceSet.load(odd.save(tmp_path / "b"), verify=True)
    assert again.fingerprint == odd.fingerprint != loaded.fingerprint
    pd.testing.assert_frame_equal(again.frames, odd.frames)
    assert np.array_equal(np.asarray(again.crops), np.asarray(faces.crops)[[1, 7, 16]])
    assert not set(train.subjects) & set(test.subjects) and len(train) + len(test) == len(faces)


def test_a_killed_save_leaves_nothing_that_loads(tmp_path):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
import au_study.faces.faceset as f
from test_faces import toy
slow = f._chunks
def crawl(crops, n=1):
    import time
    for piece in slow(crops, 1):
        print("writing", flush=True); time.sleep(.05); yield piece
f._chunks = crawl
toy().save(sys.argv[1])
"""
    target = tmp_path / "set"
    process = subprocess.Popen([sys.executable, "-c", code, str(target), os.path.dirname(__file__)], stdout=subprocess.PIPE)
    for _ in range(5): process.stdout.readline()
    process.send_signal(signal.SIGKILL); process.wait()
    assert not target.exists()
    with pytest.raises(FaceSetError, match="holds no FaceSet"): FaceSet.load(target)
    assert FaceSet.load(toy().save(target)).fingerprint == toy().fingerprint


def test_two_writers_of_one_faceset_agree_or_say_so(tmp_path):
    faces = toy()
    faces.save(tmp_path / "set"); faces.save(tmp_path / "set")
    with pytest.raises(FileExistsError, match="overwrite=True"): faces[:3].save(tmp_path / "set")
    assert len(FaceSet.load(tmp_path / "set")) == len(faces)


WRITER = """
import sys, time
import numpy as np
from au_study.facs import schematic_face
from au_study.faces import CropCache, FivePointCrop, crop_faces
recipe = FivePointCrop(16)
with CropCache(sys.argv[1], 16, landmarks=True, key=recipe.id, chunk=5) as cache:
    for i in range(cache.done, 300):
        points = schematic_face(60 + i % 7)[None] + 10
        cache.append(*crop_faces([np.full((90, 90, 3), i % 251, np.uint8)], points, recipe))
        print(i, flush=True)
    cache.finish(rows=300)
"""


def test_crops_and_landmarks_survive_kills_and_become_a_faceset(tmp_path):
    for kill_after in (40, 90, 100, None):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "c")], stdout=subprocess.PIPE)
        for n, _ in enumerate(process.stdout):
            if kill_after is not None and n >= kill_after: break
        if kill_after is not None: process.kill()
        process.stdout.close(); process.wait()
    recipe = FivePointCrop(16)
    cache = CropCache(tmp_path / "c", 16, landmarks=True, key=recipe.id)
    crops, landmarks = cache.open(); cache.close()
    assert np.array_equal(crops[:, 8, 8, 0], np.arange(300) % 251)
    expected = np.stack([crop_faces([np.zeros((90, 90, 3), np.uint8)], schematic_face(60 + i % 7)[None] + 10, recipe)[1][0] for i in range(7)])
    assert np.array_equal(landmarks[:7], expected)
    frames = pd.DataFrame({"subject": "A", "video": "T1", "frame": range(300), "AU1": 0.0, "AU12": 3.0})
    faces = FaceSet(frames, crops, landmarks, CARD)
    assert faces.crops is crops  # mapped, not read


def test_cache_memory_does_not_grow(tmp_path):
    code = """
import resource, sys
import numpy as np
from au_study.faces.cache import CropCache
batch = np.zeros((16, 100, 100, 3), np.uint8)
with CropCache(sys.argv[1], 100, chunk=64) as cache:
    for _ in range(20): cache.append(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(400): cache.append(batch)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache.finish(rows=420 * 16)
print((after - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 40  # MB, while 190 MB were written


def world_faces(n, size=256):
    "Rendered frontal faces with exact landmarks."
    torch = pytest.importorskip("torch")
    from au_study.world.identity import WORLD_AUS, identities
    from au_study.world.renderer import render_faces
    intensity = torch.zeros(n, len(WORLD_AUS)); intensity[1::2, WORLD_AUS.index(12)] = 4
    r = render_faces(identities(range(n)), intensity, size=size)
    return r.images.numpy(), r.landmarks.numpy()


def test_detectors_share_one_interface():
    pytest.importorskip("dlib")
    images, landmarks = world_faces(4)
    given, dlib = GivenLandmarks(dict(enumerate(landmarks))), DlibDetector()
    for i, image in enumerate(images):
        (a,), (b,) = given.detect(image, key=i), dlib.detect(image, key=i)
        for d in (a, b): assert d.box.shape == (4,) and d.box[0] < d.box[2] and d.box[1] < d.box[3]
        assert np.array_equal(a.landmarks, landmarks[i].astype(np.float32)) and b.landmarks is None
        inside = np.maximum(0, np.minimum(a.box[2:], b.box[2:]) - np.maximum(a.box[:2], b.box[:2])).prod()
        areas = [(d.box[2:] - d.box[:2]).prod() for d in (a, b)]
        assert inside / (sum(areas) - inside) > .4  # both boxes hold the same face


def test_world_faces_lie_inside_the_default_crop():
    images, landmarks = world_faces(16, size=96)
    _, points = crop_faces(images, landmarks, FivePointCrop(80))
    assert points.min() > 0 and points.max() < 79


def test_augment_and_crop_commute_with_mirroring():
    torch = pytest.importorskip("torch")
    from au_study.facs import FLIP_PERMUTATION
    from au_study.faces import Augment
    images, landmarks = world_faces(2, size=96)
    mirrored = np.ascontiguousarray(images[:, :, ::-1]), landmarks[:, FLIP_PERMUTATION] * [-1, 1] + [95, 0]
    crops, points = crop_faces(images, landmarks, FivePointCrop(64))
    other, other_points = crop_faces(*mirrored, FivePointCrop(64))
    tensor = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    flipped, moved = Augment(flip=1.0)(tensor, torch.from_numpy(points), seed=0)
    assert np.abs(moved.numpy() - other_points).max() < 1e-3
    assert np.abs(flipped.permute(0, 2, 3, 1).numpy() * 255 - other).mean() < 1
