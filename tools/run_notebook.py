"Run the cells of one notebook: `python -m run_notebook PATH`, in this folder."
import sys

from nbdev.test import nbdev_test

if __name__ == "__main__":
    nbdev_test(path=sys.argv[1], n_workers=0)
