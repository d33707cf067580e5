"""How the benchmarks compare calls."""
import time


def fastest(calls, repeat):
    """Shortest wall time and core time of each call after one for warming up (none where repeat is 1); they take turns, so that all meet the same load."""
    times = {name: [] for name in calls}
    for turn in range(repeat + (repeat > 1)):
        for name, call in calls.items():
            wall, core = time.perf_counter(), time.process_time()
            call()
            if turn or repeat == 1: times[name].append((time.perf_counter() - wall, time.process_time() - core))
    return {name: tuple(map(min, zip(*seen))) for name, seen in times.items()}
