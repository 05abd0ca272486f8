"""``aent-verl compare``: every method with every seed from the same start, and a report of what the results support."""
