-- The private change set of one writable session: a temporary database of its own, gone with the session.
-- Groups, arrays and bytes not yet written wait in memory (change_set.py); references, which may be many, here.

-- chunk_ref: what the session changed, in the form of the catalog's table of the same name.
CREATE TABLE staged.chunk_ref (
  node_id     INTEGER NOT NULL,  -- negative for an array that the session itself created
  chunk       TEXT NOT NULL,     -- grid position, 12/0/3
  location_id INTEGER,           -- staged.location.id; NULL = the chunk was deleted
  offset      INTEGER NOT NULL,  -- as in the catalog
  length      INTEGER NOT NULL,  -- bytes
  PRIMARY KEY (node_id, chunk)
) STRICT, WITHOUT ROWID;

-- location: the number a staged location gets in the catalog, filled in while committing.
CREATE TABLE staged.location (
  id         INTEGER PRIMARY KEY,  -- 1 stands for the payload table, as in the catalog
  catalog_id INTEGER NOT NULL      -- location.id
) STRICT;
