-- Times are microseconds since 1970. Labels, annotations and extensions are JSON objects.
-- ns is the API namespace; every write in one makes it exist.

CREATE TABLE namespaces (
    name   TEXT PRIMARY KEY,
    labels TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;

CREATE TABLE containers (
    ns           TEXT NOT NULL,
    id           TEXT NOT NULL,
    labels       TEXT NOT NULL,
    image        TEXT NOT NULL,
    runtime_name TEXT NOT NULL,
    options_url  TEXT,             -- google.protobuf.Any, byte for byte; NULL: the client sent none
    options      BLOB,
    spec_url     TEXT NOT NULL,
    spec         BLOB NOT NULL,
    snapshotter  TEXT NOT NULL,
    snapshot_key TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    extensions   TEXT NOT NULL,    -- {name: [type URL, base64]}
    sandbox_id   TEXT NOT NULL,
    UNIQUE (ns, id)
);

CREATE TABLE images (
    ns          TEXT NOT NULL,
    name        TEXT NOT NULL,
    labels      TEXT NOT NULL,
    media_type  TEXT NOT NULL,
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    annotations TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    UNIQUE (ns, name)
);

-- Which namespace sees which blob; the bytes are there once.
CREATE TABLE blobs (
    ns         TEXT NOT NULL,
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    labels     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (ns, digest)
);
CREATE INDEX blobs_by_digest ON blobs (digest);

CREATE TABLE ingests (
    ns         TEXT NOT NULL,
    ref        TEXT NOT NULL,
    total      INTEGER NOT NULL,   -- 0: not known
    expected   TEXT NOT NULL,      -- '': not known
    started_at INTEGER NOT NULL,
    expires_at INTEGER,            -- NULL: lives with its lease
    UNIQUE (ns, ref)
);

CREATE TABLE leases (
    ns         TEXT NOT NULL,
    id         TEXT NOT NULL,
    labels     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (ns, id)
);

CREATE TABLE lease_resources (
    ns    TEXT NOT NULL,
    lease TEXT NOT NULL,
    type  TEXT NOT NULL,
    id    TEXT NOT NULL,
    PRIMARY KEY (ns, lease, type, id)
) WITHOUT ROWID;

-- id names the directory below the snapshotter's own.
CREATE TABLE snapshots (
    id          INTEGER PRIMARY KEY,
    ns          TEXT NOT NULL,
    snapshotter TEXT NOT NULL,
    name        TEXT NOT NULL,     -- the key of an active snapshot or a view
    parent_id   INTEGER,
    kind        INTEGER NOT NULL,
    labels      TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    size        INTEGER NOT NULL DEFAULT 0,
    inodes      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (ns, snapshotter, name)
);
CREATE INDEX snapshots_by_parent ON snapshots (parent_id);
