-- Decoders, what they were measured at, and the collections that they were run over.

CREATE TABLE decoder (
    fingerprint VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    format VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    space VARCHAR NOT NULL,
    dim INTEGER NOT NULL,
    classes JSON NOT NULL,
    run BIGINT NOT NULL
);

-- One row a strategy and metric: accuracy, macro_f1, r2, mse.
CREATE TABLE decoder_evaluation (
    run BIGINT NOT NULL,
    decoder VARCHAR NOT NULL,
    translator VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    "rows" BIGINT NOT NULL,
    trained_on BIGINT NOT NULL,
    padded INTEGER NOT NULL
);

CREATE TABLE decoding (
    run BIGINT NOT NULL,
    source VARCHAR NOT NULL,
    decoder VARCHAR NOT NULL,
    translator VARCHAR,
    output VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    "rows" BIGINT NOT NULL,
    folded BOOLEAN NOT NULL,
    seconds DOUBLE NOT NULL,
    device VARCHAR NOT NULL
);
