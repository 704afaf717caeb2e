"""From a file to references: `find_format` tells what it is, `open_virtual` and `open_virtual_tree` parse it."""

from icelite.virtualizarr.parsers.formats import Format, find_format
from icelite.virtualizarr.parsers.opening import open_virtual, open_virtual_tree

__all__ = ["Format", "find_format", "open_virtual", "open_virtual_tree"]
