"""Collections in Parquet: a file, a folder or a glob, local or in object storage."""
