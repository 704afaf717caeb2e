"""The door: `Repository`."""

from icelite.repository.graph import AncestryGraph
from icelite.repository.opening import StoreOpener
from icelite.repository.repository import Repository
from icelite.store import IceliteStore

IceliteStore.opener = StoreOpener()

__all__ = ["AncestryGraph", "Repository"]
