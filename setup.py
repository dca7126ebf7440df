"""What pyproject.toml cannot say about the package; everything else is there."""

from setuptools import find_packages, setup

setup(
    # twisted.plugins must have no __init__.py. Discovery in pyproject.toml finds either regular packages or
    # namespace packages, and the folders of templates and migrations would be such packages, too.
    packages=[*find_packages(include=["novasvc", "novasvc.*"]), "twisted.plugins"],
)
