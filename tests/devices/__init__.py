"""The package on every device there is; the folder runs by itself: ``python -m pytest tests/devices``."""
