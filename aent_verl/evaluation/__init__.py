"""`aent-verl evaluate`: n sampled answers to each problem, scored, in files and a table."""
