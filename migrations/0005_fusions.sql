-- What was chosen for a fusion: the weight of the new side, and the sides corrected for hubness (none, old, new or both).

ALTER TABLE evaluation ADD COLUMN weight DOUBLE;
ALTER TABLE evaluation ADD COLUMN correction VARCHAR;
ALTER TABLE plan ADD COLUMN weight DOUBLE;
ALTER TABLE plan ADD COLUMN correction VARCHAR;
