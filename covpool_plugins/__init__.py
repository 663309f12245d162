"""Second-order pooling for timm and MMPretrain."""

__version__ = "0.1.0"
