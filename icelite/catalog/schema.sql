-- The catalog of an icelite repository, format 1: the authoritative text of the file format.
--
-- An icelite file is an SQLite 3 database with application_id 0x49434C54 ("ICLT") and user_version = format.
-- Open it with `sqlite3 ocean.icelite` and look around; docs/format.md explains it with queries.
-- The comments below travel inside the file: `.schema` shows them.
--
-- A commit adds rows and moves one branch; it never rewrites a row of another snapshot. Expiration deletes rows
-- of `snapshot`, and makes the first one the parent of those that lost theirs; rows of `node`, `chunk_ref` and
-- `change` keep the seq and seg of a snapshot that is gone. Garbage collection deletes what no snapshot sees.
-- Besides, only rows of `setting`, `container`, `branch` and `tag` are updated in place, and those of `location`
-- when files have moved.
--
-- What a snapshot sees. Snapshots form runs, called segments; a fork opens a new one. The lineage of a
-- snapshot (seg, seq) is [(seg, seq), (parent_seg, fork_seq), ...]. A row of `node` or `chunk_ref` is visible
-- when its seg is in the lineage and its seq is not above the bound beside it; of several visible rows with
-- the same key the one with the greatest seq counts.
--
-- Damage. Rows have in their last column the CRC-32C of the columns before it; those of `segment`, `operation` and
-- `snapshot` have it in `seal`, those of `chunk_ref` are summed in `change` (docs/format.md says how). NULL in such a column stands for a row that
-- was changed by hand, and is not checked.
--
-- Times are integers, UTC, since 1970: microseconds unless the column says nanoseconds.
-- REFERENCES tells people and programs what belongs together; it is not enforced (foreign_keys is off).
-- The statements contain no quote characters: the check on opening relies on it (catalog/checks.py).

-- setting: facts about the whole repository, one a row, each value a JSON text.
CREATE TABLE setting (
  name   TEXT NOT NULL PRIMARY KEY,  -- config, home, metadata, status, feature_flags, objects, collected
  value  TEXT NOT NULL,              -- JSON
  crc32c INTEGER                     -- of the row
) STRICT, WITHOUT ROWID;

-- segment: a linear run of snapshots. Numbered by the snapshot that opened it, so never reused.
CREATE TABLE segment (
  seg        INTEGER PRIMARY KEY,                 -- the seq of the snapshot that opened it, which may be gone
  parent_seg INTEGER REFERENCES segment (seg),    -- segment it forked from; NULL for the first of all
  fork_seq   INTEGER,                             -- greatest seq of parent_seg that it sees
  CHECK ((parent_seg IS NULL) = (fork_seq IS NULL)),
  CHECK (parent_seg IS NULL OR (parent_seg <= fork_seq AND fork_seq < seg))
) STRICT;

-- operation: the log of everything that was ever done to the repository, oldest first.
CREATE TABLE operation (
  id      INTEGER PRIMARY KEY,  -- repository-wide, increasing; no row is ever deleted
  done_at INTEGER NOT NULL,     -- microseconds
  kind    TEXT NOT NULL,        -- Icechunk's update types: NewCommit, BranchCreated, TagDeleted, ...
  detail  TEXT NOT NULL         -- JSON object: the names and snapshot ids concerned
) STRICT;

-- snapshot: one committed state of the whole hierarchy.
CREATE TABLE snapshot (
  seq        INTEGER PRIMARY KEY REFERENCES operation (id),  -- the operation that wrote it: increasing, never reused
  seg        INTEGER NOT NULL REFERENCES segment (seg),      -- segment it belongs to
  id         TEXT NOT NULL UNIQUE,                           -- public id: 20 characters of Crockford base-32
  parent_seq INTEGER REFERENCES snapshot (seq),              -- that before it, or if released the first; NULL: none
  written_at INTEGER NOT NULL,                               -- microseconds
  message    TEXT NOT NULL,                                  -- what the author said
  metadata   TEXT NOT NULL,                                  -- JSON object
  CHECK (seg <= seq AND parent_seq < seq)
) STRICT;

-- seal: the checksums of what shares one numbering: an operation, the snapshot that it wrote, the segment that this
-- opened. Each is the CRC-32C of a row there; NULL, or no row here, stands for one that is not checked.
CREATE TABLE seal (
  id        INTEGER PRIMARY KEY REFERENCES operation (id),  -- operation.id, snapshot.seq, segment.seg
  operation INTEGER,  -- of that row of operation
  snapshot  INTEGER,  -- of that row of snapshot
  segment   INTEGER   -- of that row of segment
) STRICT;

-- branch: a movable name for a snapshot.
CREATE TABLE branch (
  name   TEXT NOT NULL PRIMARY KEY,                   -- printable, at most 255 characters; main is always there
  seq    INTEGER NOT NULL REFERENCES snapshot (seq),  -- its newest snapshot
  crc32c INTEGER                                      -- of the row
) STRICT, WITHOUT ROWID;

-- tag: a name that never moves. A deleted tag keeps its row, so the name can never mean anything else.
CREATE TABLE tag (
  name   TEXT NOT NULL PRIMARY KEY,          -- as that of a branch; the two may be the same
  seq    INTEGER REFERENCES snapshot (seq),  -- its snapshot; NULL = deleted for ever
  crc32c INTEGER                             -- of the row
) STRICT, WITHOUT ROWID;

-- container: a place where virtual chunks may live. It grants nothing: whoever opens the file decides what is read.
CREATE TABLE container (
  id         INTEGER PRIMARY KEY,   -- what location.container_id names
  name       TEXT NOT NULL UNIQUE,  -- used in references of the form vcc://name/path
  url_prefix TEXT NOT NULL UNIQUE,  -- file:///data/ or s3://bucket/prefix/
  options    TEXT NOT NULL,         -- JSON object: region and endpoint as the writer knew them, a hint; no credentials
  crc32c     INTEGER                -- of the row
) STRICT;

-- location: one file or object that holds chunk bytes; references point here, so moving a file is one row.
CREATE TABLE location (
  id           INTEGER PRIMARY KEY,  -- 1 stands for the payload table of this file (inline chunks)
  kind         INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 3),  -- 1 native object, 2 virtual, 3 inline
  container_id INTEGER REFERENCES container (id),  -- path continues this container's url_prefix; NULL = see path
  path         TEXT NOT NULL,        -- absolute URL, or without :// relative to the directory of this file
  size         INTEGER,              -- bytes of the whole source when referenced; NULL = not recorded
  etag         TEXT,                 -- its ETag then; NULL = not recorded
  modified_at  INTEGER,              -- its modification time then, nanoseconds; NULL = not recorded
  crc32c       INTEGER               -- of the row
) STRICT;
CREATE INDEX location_by_path ON location (path);

-- node: a group or array, one row for each snapshot that changed its metadata. One that moved has two rows of that
-- snapshot: at the old path a deletion, at the new path its metadata.
CREATE TABLE node (
  path        TEXT NOT NULL,     -- without slash at either end; empty for the root
  seq         INTEGER NOT NULL,  -- snapshot that wrote this row; it may be gone
  seg         INTEGER NOT NULL REFERENCES segment (seg),  -- segment of that snapshot
  node_id     INTEGER NOT NULL,  -- identity: survives a move, ends with a deletion; a new one is greater than all here
  zarr_format INTEGER NOT NULL CHECK (zarr_format IN (2, 3)),  -- which of the two metadata is written in
  metadata    TEXT,              -- 3: the text of zarr.json; 2: JSON object of file name to text; NULL = deleted
  crc32c      INTEGER,           -- of the row
  PRIMARY KEY (path, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_by_id ON node (node_id);

-- change: what a snapshot did to each node that it touched. It outlives the snapshot; serves diff and rebase.
CREATE TABLE change (
  seq         INTEGER NOT NULL,  -- the snapshot; it may be gone
  node_id     INTEGER NOT NULL,  -- the group or array
  seg         INTEGER NOT NULL REFERENCES segment (seg),  -- segment of that snapshot
  node_change INTEGER NOT NULL CHECK (node_change BETWEEN 0 AND 4),  -- 1 created, 2 updated, 3 deleted, 4 moved
  chunks      BLOB,              -- zlib-compressed grid positions, joined by newlines; NULL = no chunk changed
  refs_sum    INTEGER NOT NULL,  -- sum over the rows of chunk_ref with this seq and node_id, modulo 2^48
  crc32c      INTEGER,           -- of the row
  PRIMARY KEY (seq, node_id)
) STRICT, WITHOUT ROWID;

-- usage: how many references lead to a file, one row for each snapshot that changed them. The newest row that a
-- snapshot sees counts, as in node; so the rows of a file are its history. Only of virtual files; derived.
CREATE TABLE usage (
  location_id INTEGER NOT NULL REFERENCES location (id),  -- the file
  seq         INTEGER NOT NULL,  -- snapshot that wrote this row; it may be gone
  seg         INTEGER NOT NULL REFERENCES segment (seg),  -- segment of that snapshot
  refs        INTEGER NOT NULL CHECK (refs >= 0),  -- references to it in that snapshot; 0 = it was dropped
  crc32c      INTEGER,           -- of the row
  PRIMARY KEY (location_id, seq)
) STRICT, WITHOUT ROWID;

-- payload: the bytes of inline chunks, apart from the references so that those stay small.
CREATE TABLE payload (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: a writer may hold one before its commit
  data       BLOB NOT NULL,     -- as the codecs left it
  crc32c     INTEGER NOT NULL,  -- CRC-32C (Castagnoli) of data
  written_at INTEGER NOT NULL   -- microseconds; young unreferenced rows may belong to a session under way
) STRICT;

-- chunk_ref: where the bytes of a chunk are, one row for each snapshot that changed it.
CREATE TABLE chunk_ref (
  node_id     INTEGER NOT NULL,  -- the array
  chunk       TEXT NOT NULL,     -- grid position, 12/0/3; empty for an array without dimensions
  seq         INTEGER NOT NULL,  -- snapshot that wrote this row; it may be gone
  seg         INTEGER NOT NULL REFERENCES segment (seg),  -- segment of that snapshot
  location_id INTEGER REFERENCES location (id),  -- where; NULL = the chunk was deleted
  offset      INTEGER NOT NULL CHECK (offset >= 0),  -- first byte in the location; inline: the payload id
  length      INTEGER NOT NULL CHECK (length >= 0),  -- bytes
  PRIMARY KEY (node_id, chunk, seq)
) STRICT, WITHOUT ROWID;
