"""kerchunk references in both directions: reference files into a repository, and a snapshot out as a reference file.

References go in as they stand, as the keys of a Zarr v2 (or v3) hierarchy, and come out as the same keys.
"""

from icelite.kerchunk.exporting import export_kerchunk
from icelite.kerchunk.importing import import_kerchunk, write_references

__all__ = ["export_kerchunk", "import_kerchunk", "write_references"]
