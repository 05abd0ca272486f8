"""Methods compared: the grid of runs, the statistics, the report."""
