"""Small Parquet tables beside collections."""
