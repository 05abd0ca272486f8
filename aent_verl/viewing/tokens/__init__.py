"""The page of a token dump: what a run says about single tokens."""
