"""Laws that any store or translator passes."""
