"Packaging: every value comes from settings.ini, the one source that nbdev reads too."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def listed(key):
    "Whitespace-separated values of `key`."
    return cfg.get(key, "").split()


readme = root / "README.md"
setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]), include_package_data=True,
    python_requires=">=" + cfg["min_python"], install_requires=listed("requirements"),
    extras_require={"dev": listed("dev_requirements")},
    entry_points={
        "console_scripts": listed("console_scripts"),
        "jupyter_client.kernel_provisioners": listed("kernel_provisioners"),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
        **{f"au_study.{kind}": listed(kind) for kind in ("estimators", "statistics", "analyses", "datasets")},
    },
)
