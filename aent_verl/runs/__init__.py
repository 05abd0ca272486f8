"""Finished runs as they lie on disk: metrics, scores of each problem, and under what protocol they were made."""
