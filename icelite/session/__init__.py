"""Sessions: one snapshot, open for reading or for preparing the next one."""

from icelite.session.commits import OpenedSnapshot
from icelite.session.session import ForkSession, Session
from icelite.types import SessionMode

__all__ = ["ForkSession", "OpenedSnapshot", "Session", "SessionMode"]
