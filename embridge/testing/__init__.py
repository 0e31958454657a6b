"""Conformance tests for stores, translators and decoders."""
