"""A FAISS index migrated to another space: wrapped, rewritten or rebuilt, and verified."""
