-- Records only: what a group of containers shares. Whoever made one keeps the sandbox itself.

CREATE TABLE sandboxes (
    ns           TEXT NOT NULL,
    id           TEXT NOT NULL,
    labels       TEXT NOT NULL,
    runtime_name TEXT NOT NULL,
    options_url  TEXT,             -- google.protobuf.Any, byte for byte; NULL: the client sent none
    options      BLOB,
    spec_url     TEXT,
    spec         BLOB,
    sandboxer    TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    extensions   TEXT NOT NULL,    -- {name: [type URL, base64]}
    UNIQUE (ns, id)
);
