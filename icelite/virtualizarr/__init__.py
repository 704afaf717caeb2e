"""VirtualiZarr's datasets into icelite: `to_icelite`, and the accessors ``ds.icelite`` and ``tree.icelite``."""

from icelite.virtualizarr.writing import IceliteAccessor, WriteSummary, to_icelite

__all__ = ["IceliteAccessor", "WriteSummary", "to_icelite"]
