"""FAISS indexes: build, search, extend, and use on a GPU."""
