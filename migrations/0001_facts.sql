-- What embridge did: runs, the files they read and wrote, and the facts that each kind of run leaves.
-- No foreign keys: in DuckDB they block later ALTERs of both tables.

CREATE SEQUENCE run_id;

CREATE TABLE run (
    id BIGINT PRIMARY KEY DEFAULT nextval('run_id'),
    verb VARCHAR NOT NULL,
    parameters JSON NOT NULL,
    finished_at TIMESTAMP NOT NULL,
    seconds DOUBLE NOT NULL,
    "rows" BIGINT,
    device VARCHAR,
    version VARCHAR NOT NULL
);

CREATE TABLE artifact (
    run BIGINT NOT NULL,
    direction VARCHAR NOT NULL CHECK (direction IN ('in', 'out')),
    role VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    fingerprint VARCHAR NOT NULL
);

CREATE TABLE space (
    name VARCHAR NOT NULL,
    dim INTEGER NOT NULL,
    metric VARCHAR NOT NULL,
    normalized BOOLEAN NOT NULL,
    PRIMARY KEY (name, dim)
);

CREATE TABLE collection (
    fingerprint VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    "rows" BIGINT NOT NULL,
    space VARCHAR NOT NULL,
    dim INTEGER NOT NULL,
    run BIGINT NOT NULL,
    PRIMARY KEY (fingerprint, path)
);

CREATE TABLE anchor_set (
    run BIGINT NOT NULL,
    source VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    shared BIGINT NOT NULL,
    anchors BIGINT NOT NULL,
    held_out BIGINT NOT NULL,
    test_size DOUBLE NOT NULL,
    seed BIGINT NOT NULL
);

CREATE TABLE translator (
    fingerprint VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    parameters JSON NOT NULL,
    source_space VARCHAR NOT NULL,
    source_dim INTEGER NOT NULL,
    target_space VARCHAR NOT NULL,
    target_dim INTEGER NOT NULL,
    anchors BIGINT NOT NULL,
    held_out BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    device VARCHAR NOT NULL,
    candidates JSON NOT NULL,
    run BIGINT NOT NULL,
    PRIMARY KEY (fingerprint, path)
);

CREATE TABLE evaluation (
    run BIGINT NOT NULL,
    translator VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    k INTEGER NOT NULL,
    queries BIGINT NOT NULL,
    corpus BIGINT NOT NULL,
    judged BIGINT NOT NULL,
    overlap DOUBLE NOT NULL,
    overlap_low DOUBLE NOT NULL,
    overlap_high DOUBLE NOT NULL,
    recall DOUBLE,
    mrr DOUBLE,
    mean_cosine DOUBLE NOT NULL,
    relative_residual DOUBLE NOT NULL
);

CREATE TABLE conversion (
    run BIGINT NOT NULL,
    source VARCHAR NOT NULL,
    translator VARCHAR NOT NULL,
    output VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    "rows" BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    device VARCHAR NOT NULL
);

-- One row for each file that was made of another.
CREATE VIEW lineage AS
SELECT
    made.fingerprint AS fingerprint,
    made.path AS path,
    made.kind AS kind,
    used.fingerprint AS from_fingerprint,
    used.path AS from_path,
    used.kind AS from_kind,
    used.role AS role,
    run.verb AS verb,
    run.id AS run,
    run.finished_at AS finished_at
FROM artifact made
JOIN artifact used ON used.run = made.run AND used.direction = 'in'
JOIN run ON run.id = made.run
WHERE made.direction = 'out';

-- For each pair of spaces the translator whose translated documents kept most native neighbours, as last measured.
CREATE VIEW best_translator AS
WITH measured AS (
    SELECT translator, overlap, overlap_low, overlap_high, recall, k, queries, corpus, run
    FROM evaluation
    WHERE strategy = 'translate-documents'
    QUALIFY row_number() OVER (PARTITION BY translator ORDER BY run DESC) = 1
)
SELECT
    t.source_space,
    t.target_space,
    t.method,
    t.path,
    t.fingerprint,
    t.anchors,
    m.overlap,
    m.overlap_low,
    m.overlap_high,
    m.recall,
    m.k,
    m.queries,
    m.corpus
FROM translator t
JOIN measured m ON m.translator = t.fingerprint
QUALIFY row_number() OVER (PARTITION BY t.source_space, t.target_space ORDER BY m.overlap DESC, t.run DESC) = 1;
