"""Certificates on disk: written as they come, read again, certified again, drawn."""

from certify.records.log import RecordLog
from certify.records.reader import read_records
from certify.records.table import Records

__all__ = ["RecordLog", "Records", "read_records"]
