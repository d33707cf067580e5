"Order of the tests: those that run whole batches come first, so that no worker is left alone with one at the end; drills share one undisturbed batch, hence one worker."
import pytest

FIRST = ("test_drills", "test_study", "test_own_method", "test_world", "test_ddp", "test_training", "test_prepare", "test_datasets", "test_privacy")


def rank(item): return FIRST.index(name) if (name := item.path.stem) in FIRST else len(FIRST)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (rank(item), "place" not in getattr(item, "fixturenames", ())))
    for item in items:
        if item.path.stem == "test_drills" and "place" in item.fixturenames: item.add_marker(pytest.mark.xdist_group("drills"))
