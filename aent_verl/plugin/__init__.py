"""The only package that imports verl, Ray or vLLM; imported by their plug-in loaders, so it stays empty."""
