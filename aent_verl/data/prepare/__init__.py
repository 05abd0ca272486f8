"""Public data sets, local files and reasoning-gym generators as checked parquet files in verl's format.

    aent-verl prepare math --output data/math

`table` says what is known of each public data set, `sources` reads rows from the hub or from files, `rows` turns them
into problems and verl's columns, `checks` looks for what would spoil a run, `jobs` does all this for one data set, and
`output` writes and reports it. The command line is `aent_verl.commands.prepare`.
"""
