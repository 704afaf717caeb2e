"""What `import icelite` brings in, and what every name in it is."""

from __future__ import annotations

import subprocess
import sys

import icelite

OPTIONAL = ["xarray", "s3fs", "botocore", "aiohttp", "virtualizarr", "icechunk", "dask", "h5py"]


def test_import_brings_in_no_optional_package() -> None:
    program = f"import sys, icelite; print([name for name in {OPTIONAL} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there_and_sorted() -> None:
    assert sorted(icelite.__all__) == icelite.__all__
    missing = [name for name in icelite.__all__ if not hasattr(icelite, name)]
    assert missing == []
