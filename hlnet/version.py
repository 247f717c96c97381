"""The version of hlnet."""

__version__ = "0.1.0"
