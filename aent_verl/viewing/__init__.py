"""What people look at: charts, progress, the plot of a run, the page of tokens."""
