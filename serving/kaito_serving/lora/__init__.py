"""LoRA adapters: read and check their folders, and apply any mix of them exactly."""
