"""The CPU platform for verl, what vLLM needs on it, and vLLM's plug-in on every platform."""
