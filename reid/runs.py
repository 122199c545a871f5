"""A run's log."""

from reid.history import read_log

__all__ = ["read_log"]
