"""FAISS indexes as such: built, and put on a GPU."""
