"""Guarantees other than one ball of one norm around a pooled vote."""
