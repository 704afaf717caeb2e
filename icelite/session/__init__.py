"""Sessions: one snapshot, open for reading or for preparing the next one."""

from icelite.session.commits import Base
from icelite.session.session import ForkSession, Session

__all__ = ["Base", "ForkSession", "Session"]
