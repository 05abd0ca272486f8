"""Does a method help, compared with its baseline? Numbers, intervals and verdicts from seeds x problems x samples.

Arrays in, numbers out: nothing here reads a run's files. `docs/statistics.md` defines every number.
"""
