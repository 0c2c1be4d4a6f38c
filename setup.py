"""The packages, and configs/ as a part of joytag; pyproject.toml has everything else."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["joytag*", "data_prep*"]), "joytag.configs"],
    package_dir={"joytag.configs": "configs"},
    package_data={
        "data_prep.tools": ["openmoji.csv", "OPENMOJI.md"],
        "joytag": ["py.typed"],
        "joytag.app": ["page/*"],
        "joytag.configs": ["**/*"],
        "joytag.export": ["usage/*"],
        "joytag.reports": ["templates/*"],
    },
)
