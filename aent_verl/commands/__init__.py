"""The commands of ``aent-verl``, one file each: parse, call, print."""
