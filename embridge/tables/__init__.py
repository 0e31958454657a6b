"""Small Parquet tables: ids, labels, qrels, hits, predictions, texts."""
