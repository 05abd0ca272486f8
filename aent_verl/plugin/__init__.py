"""What runs inside verl; imported by the plug-in loaders of verl and vLLM, so this file stays empty."""
