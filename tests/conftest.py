"Order of the tests: files that run batches or render faces come first, so that none is left for a lonely worker at the end. A file stays with one worker, which makes its fixtures once."

FIRST = ("test_drills", "test_world", "test_datasets", "test_prepare", "test_own_method", "test_re_net", "test_ddp", "test_training", "test_privacy", "test_study",
         "test_static_dynamic", "test_published")


def pytest_collection_modifyitems(items): items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
