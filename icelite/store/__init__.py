"""The Zarr store: `IceliteStore`."""

from icelite.store.store import IceliteStore

__all__ = ["IceliteStore"]
