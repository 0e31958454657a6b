"""Collections in FAISS indexes."""
