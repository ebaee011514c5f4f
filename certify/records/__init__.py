"""Certificates on disk: written as they come, read again, certified again, drawn."""

from certify.records.log import RecordLog, Records, read_records

__all__ = ["RecordLog", "Records", "read_records"]
