"""Tasks with their rewards, and the parquet files that verl trains on."""
