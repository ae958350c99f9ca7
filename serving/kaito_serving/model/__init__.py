"""The base model: what is in its folder, its dtype, context and tokenizer, and how it is loaded."""
