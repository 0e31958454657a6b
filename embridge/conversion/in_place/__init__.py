"""Migrations in place: new vectors beside the old ones, in the user's own collection; put into use, taken back, removed."""

from __future__ import annotations

from embridge.conversion.in_place.migrate import migrate_in_place, preview_in_place
from embridge.conversion.in_place.switch import cutover, drop_vector, rollback

__all__ = ["cutover", "drop_vector", "migrate_in_place", "preview_in_place", "rollback"]
