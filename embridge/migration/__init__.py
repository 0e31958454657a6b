"""Migrating a FAISS index to another space: wrap, rewrite or rebuild, and verify."""
