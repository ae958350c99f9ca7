"""The LoRA and QLoRA job: configuration, data checks, training, progress, export."""
