"""Verifiable tasks: data, rewards and the small models that the examples start from."""
