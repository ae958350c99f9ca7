"""The engine over transformers and torch."""
