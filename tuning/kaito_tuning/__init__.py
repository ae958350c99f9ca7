"""The LoRA and QLoRA job: ``run`` puts the rooms together, ``errors`` is how it may end."""
