-- Index migrations and merges have tables; translators are ranked within one benchmark only.

ALTER TABLE conversion ADD COLUMN skipped BIGINT;
ALTER TABLE decoding ADD COLUMN columns JSON;
ALTER TABLE translator ADD COLUMN calibrated BIGINT;
ALTER TABLE translator ADD COLUMN role VARCHAR;
ALTER TABLE translator ADD COLUMN chosen_by VARCHAR;

-- FAISS indexes that were moved to another space. (Changes of this schema are in the table migration.)
CREATE TABLE index_migration (
    run BIGINT NOT NULL,
    source VARCHAR NOT NULL,
    translator VARCHAR NOT NULL,
    output VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    mode VARCHAR NOT NULL,
    exact BOOLEAN NOT NULL,
    verified_overlap DOUBLE NOT NULL,
    queries_verified BIGINT NOT NULL,
    own_overlap DOUBLE,
    agreement DOUBLE,
    reason VARCHAR NOT NULL,
    "rows" BIGINT NOT NULL,
    seconds DOUBLE NOT NULL
);

CREATE TABLE merge (
    run BIGINT NOT NULL,
    native_source VARCHAR NOT NULL,
    translated_source VARCHAR NOT NULL,
    output VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    "rows" BIGINT NOT NULL,
    native BIGINT NOT NULL,
    translated BIGINT NOT NULL,
    replaced BIGINT NOT NULL,
    score_offset DOUBLE NOT NULL,
    reason VARCHAR NOT NULL,
    k INTEGER NOT NULL,
    queries BIGINT NOT NULL,
    pairs BIGINT NOT NULL,
    share_before DOUBLE,
    share_after DOUBLE,
    share_truth DOUBLE,
    overlap_before DOUBLE,
    overlap_after DOUBLE,
    seconds DOUBLE NOT NULL
);

-- The benchmark of every evaluation of a translator: figures may be compared where it is equal. It is a hash of the files that
-- were read (maps, labels and reference queries apart), of k and the numbers of queries and rows, of how queries were sampled,
-- and of how held-out rows were chosen when the translator was fitted: rows that it was fitted on are not in the corpus.
CREATE VIEW benchmark AS
WITH files AS (
    SELECT run, string_agg(role || '=' || fingerprint, ' ' ORDER BY role, fingerprint) AS names
    FROM artifact
    WHERE direction = 'in' AND kind <> 'map' AND role NOT IN ('labels', 'reference queries')
    GROUP BY run
),
fitted AS (
    SELECT t.fingerprint, min(concat_ws(' ', a.source, a.target, a.test_size, a.seed)) AS split
    FROM translator t
    JOIN anchor_set a ON a.run = t.run
    GROUP BY t.fingerprint
)
SELECT DISTINCT
    e.run,
    e.translator,
    left(md5(concat_ws(
        '|', coalesce(files.names, ''), coalesce(fitted.split, ''), e.k, e.queries, e.corpus, e.judged,
        coalesce(run.parameters ->> 'max_queries', ''), coalesce(run.parameters ->> 'seed', '')
    )), 12) AS benchmark,
    e.k,
    e.queries,
    e.corpus,
    e.judged
FROM evaluation e
JOIN run ON run.id = e.run
LEFT JOIN files ON files.run = e.run
LEFT JOIN fitted ON fitted.fingerprint = e.translator;

-- For each pair of spaces and each benchmark the translator whose translated documents kept most native neighbours, as last
-- measured, with how many translators it was compared with there.
CREATE OR REPLACE VIEW best_translator AS
WITH measured AS (
    SELECT e.translator, e.overlap, e.overlap_low, e.overlap_high, e.recall, b.benchmark, b.k, b.queries, b.corpus, e.run
    FROM evaluation e
    JOIN benchmark b ON b.run = e.run AND b.translator = e.translator
    WHERE e.strategy = 'translate-documents'
    QUALIFY row_number() OVER (PARTITION BY e.translator, b.benchmark ORDER BY e.run DESC) = 1
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
    m.corpus,
    m.benchmark,
    count(DISTINCT t.fingerprint) OVER (PARTITION BY t.source_space, t.target_space, m.benchmark) - 1 AS others,
    m.run
FROM translator t
JOIN measured m ON m.translator = t.fingerprint
QUALIFY row_number()
    OVER (PARTITION BY t.source_space, t.target_space, m.benchmark ORDER BY m.overlap DESC, t.run DESC, t.path) = 1;

-- The weight of the Procrustes solution was called s before.
CREATE OR REPLACE VIEW candidate AS
SELECT
    t.fingerprint AS translator,
    t.path,
    t.run,
    c.value ->> 'method' AS method,
    CAST(c.value -> 'parameters' ->> 'alpha' AS DOUBLE) AS alpha,
    CAST(coalesce(c.value -> 'parameters' ->> 'shrinkage_target_weight', c.value -> 'parameters' ->> 's') AS DOUBLE)
        AS shrinkage_target_weight,
    CAST(c.value -> 'parameters' ->> 'penalty' AS DOUBLE) AS penalty,
    CAST(c.value ->> 'score' AS DOUBLE) AS score,
    CAST(c.value ->> 'deficit_error' AS DOUBLE) AS deficit_error
FROM translator t, json_each(t.candidates) c;
