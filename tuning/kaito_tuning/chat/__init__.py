"""Conversations as text: which chat template renders them, and which of the assistant's tokens it marks as learned.

Needs transformers' tokenizers, no torch.
"""
