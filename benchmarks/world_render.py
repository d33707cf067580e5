"""Frames per second and peak memory of the face world's renderer: `python benchmarks/world_render.py [sizes...]`.

Every size runs in a process of its own, so that the peak resident memory (interpreter and PyTorch included) is that size's alone.
"""

import resource
import subprocess
import sys
import time

BATCH, THREADS = 32, 2


def measure(size: int) -> str:
    "Render random expressive faces for a few seconds; one line of text."
    import torch

    from au_study.world.identity import identities
    from au_study.world.renderer import Scene, render_faces

    torch.set_num_threads(THREADS)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    g = torch.Generator().manual_seed(0)
    people, scene = identities(BATCH), Scene.sample(BATCH, g)
    intensities = 5 * torch.rand(BATCH, 17, generator=g) * (torch.rand(BATCH, 17, generator=g) < 0.25)
    render_faces(people, intensities, scene, size)
    times, start, cpu = [], time.perf_counter(), time.process_time()
    while len(times) < 3 or time.perf_counter() - start < 6:
        t = time.perf_counter()
        render_faces(people, intensities, scene, size)
        times.append(time.perf_counter() - t)
    cost = (time.process_time() - cpu) / (BATCH * len(times)) * 1000  # unlike frames/s, hardly changed by other load on the machine
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fps = [BATCH / t for t in sorted(times)]
    return f"{size:4d} px   median {fps[len(fps) // 2]:6.1f}   best {fps[0]:6.1f} frames/s   {cost:5.1f} core-ms a frame   peak {peak:5.0f} MB (of which import {imported:.0f} MB)"


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(measure(int(sys.argv[2])))
    else:
        print(f"batch {BATCH}, {THREADS} threads")
        for size in sys.argv[1:] or (80, 96, 128, 256):
            print(subprocess.run([sys.executable, __file__, "--one", str(size)], capture_output=True, text=True, check=True).stdout.strip(), flush=True)
