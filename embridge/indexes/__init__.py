"""FAISS indexes: built, searched, extended, and put on a GPU."""
