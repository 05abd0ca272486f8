"""What we rely on in verl's API, and its check."""
