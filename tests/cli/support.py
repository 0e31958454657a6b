"""Data and functions for the tests of the command line."""

from embridge.types import Space

P, Q, N = 6, 9, 60
OLD, NEW = Space("old", P), Space("new", Q)


def holds(value, shape):
    """True where a value has the keys and types of a shape; keys beyond them are allowed."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and holds(value[key], s) for key, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and len(value) > 0 and all(holds(v, shape[0]) for v in value)
    return isinstance(value, shape) and not (shape is int and isinstance(value, bool))


def snapshot(folder):
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}
