"""Collections stored in FAISS indexes."""

from embridge.errors import MissingDependencyError

try:
    import faiss as faiss
except ImportError as e:
    raise MissingDependencyError.of("FAISS", "This", "cpu]' or 'embridge[gpu") from e
