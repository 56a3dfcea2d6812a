-- Keys of the HTTP API. Only the SHA-256 of a key is stored: a copy of this table admits nobody.
CREATE TABLE api_keys (
    key_id     text        PRIMARY KEY,               -- public: it is the part of the key that lists and logs show
    digest     bytea       NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    tenant     text        NOT NULL,                  -- '*': every tenant
    scopes     text[]      NOT NULL CHECK (cardinality(scopes) > 0),
    name       text        NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL DEFAULT 'infinity',
    revoked_at timestamptz,
    last_used  date,                                  -- a day, so that a use costs at most one write a day
    CHECK (tenant <> '*' OR scopes && ARRAY['admin', 'pipeline'])
);
