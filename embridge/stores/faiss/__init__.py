"""Collections stored in FAISS indexes."""
