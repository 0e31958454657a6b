-- Evaluations in full, and plans: intervals and nDCG, by label, by size of the corpus, one map beside another.

ALTER TABLE evaluation ADD COLUMN candidate_recall DOUBLE;
ALTER TABLE evaluation ADD COLUMN recall_low DOUBLE;
ALTER TABLE evaluation ADD COLUMN recall_high DOUBLE;
ALTER TABLE evaluation ADD COLUMN mrr_low DOUBLE;
ALTER TABLE evaluation ADD COLUMN mrr_high DOUBLE;
ALTER TABLE evaluation ADD COLUMN ndcg DOUBLE;
ALTER TABLE evaluation ADD COLUMN ndcg_low DOUBLE;
ALTER TABLE evaluation ADD COLUMN ndcg_high DOUBLE;

CREATE TABLE evaluation_label (
    run BIGINT NOT NULL,
    translator VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    label VARCHAR NOT NULL,
    queries BIGINT NOT NULL,
    judged BIGINT NOT NULL,
    overlap DOUBLE NOT NULL,
    overlap_low DOUBLE NOT NULL,
    overlap_high DOUBLE NOT NULL,
    recall DOUBLE,
    recall_low DOUBLE,
    recall_high DOUBLE,
    mrr DOUBLE,
    mrr_low DOUBLE,
    mrr_high DOUBLE,
    ndcg DOUBLE,
    ndcg_low DOUBLE,
    ndcg_high DOUBLE
);

-- Overlap among the first rows of the corpus in random order, all of them, or (forecast) more than there were.
CREATE TABLE evaluation_size (
    run BIGINT NOT NULL,
    translator VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    corpus BIGINT NOT NULL,
    overlap DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    forecast BOOLEAN NOT NULL
);

-- A strategy through `translator` minus the same through `other`, paired by query.
CREATE TABLE evaluation_difference (
    run BIGINT NOT NULL,
    translator VARCHAR NOT NULL,
    other VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    difference DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL
);

CREATE TABLE plan (
    run BIGINT NOT NULL,
    strategy VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    hubness BOOLEAN NOT NULL,
    method VARCHAR NOT NULL,
    anchors BIGINT NOT NULL,
    k INTEGER NOT NULL,
    queries BIGINT NOT NULL,
    corpus BIGINT NOT NULL,
    judged BIGINT NOT NULL,
    overlap DOUBLE NOT NULL,
    overlap_low DOUBLE NOT NULL,
    overlap_high DOUBLE NOT NULL,
    candidate_recall DOUBLE NOT NULL,
    recall DOUBLE,
    recall_low DOUBLE,
    recall_high DOUBLE,
    mrr DOUBLE,
    mrr_low DOUBLE,
    mrr_high DOUBLE,
    ndcg DOUBLE,
    ndcg_low DOUBLE,
    ndcg_high DOUBLE,
    gain DOUBLE NOT NULL,
    gain_low DOUBLE NOT NULL,
    gain_high DOUBLE NOT NULL,
    recovered DOUBLE,
    rows_changed BIGINT NOT NULL,
    encodes BIGINT NOT NULL,
    seconds DOUBLE,
    cost DOUBLE,
    needs_old_encoder BOOLEAN NOT NULL,
    needs_texts BOOLEAN NOT NULL
);

CREATE TABLE recommendation (
    run BIGINT NOT NULL,
    situation VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    reason VARCHAR NOT NULL
);

-- Overlap of translated documents by number of anchors; a forecast has an interval.
CREATE TABLE learning_curve (
    run BIGINT NOT NULL,
    anchors BIGINT NOT NULL,
    overlap DOUBLE NOT NULL,
    low DOUBLE,
    high DOUBLE,
    forecast BOOLEAN NOT NULL
);

-- What a fit chose from, a row each. Scores of kernel (by penalty) are on other folds than those of all other methods.
CREATE VIEW candidate AS
SELECT
    t.fingerprint AS translator,
    t.path,
    t.run,
    c.value ->> 'method' AS method,
    CAST(c.value -> 'parameters' ->> 'alpha' AS DOUBLE) AS alpha,
    CAST(c.value -> 'parameters' ->> 's' AS DOUBLE) AS s,
    CAST(c.value -> 'parameters' ->> 'penalty' AS DOUBLE) AS penalty,
    CAST(c.value ->> 'score' AS DOUBLE) AS score,
    CAST(c.value ->> 'deficit_error' AS DOUBLE) AS deficit_error
FROM translator t, json_each(t.candidates) c;
