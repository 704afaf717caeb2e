"""The Zarr store: `IceliteStore`, which code for Icechunk calls `IcechunkStore`."""

from icelite.store.store import IceliteStore

IcechunkStore = IceliteStore

__all__ = ["IcechunkStore", "IceliteStore"]
