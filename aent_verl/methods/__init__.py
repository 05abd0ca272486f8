"""The axes of entropy control as validated settings; torch and `core` alone."""
