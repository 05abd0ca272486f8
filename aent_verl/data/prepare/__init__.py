"""Public data sets, local files and reasoning-gym generators as checked parquet files in verl's format.

    aent-verl prepare math --output data/math

`table` says what is known of each public data set, `sources` reads rows from the hub or from files, `rows` turns them
into verl's columns, `checks` looks for what would spoil a run, `command` is the command line.
"""
