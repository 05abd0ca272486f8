"""Token dumps: what a training run says about single tokens, and the page that shows it.

The worker writes with `TokenRecord`, `dump_file` and `write_records`; ``aent-verl tokens`` reads and draws (`page`).
"""

from aent_verl.runs.token_records import TokenRecord, dump_file, read_records, write_records

__all__ = ["TokenRecord", "dump_file", "read_records", "write_records"]
