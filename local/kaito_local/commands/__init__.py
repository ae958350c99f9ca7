"""The `kaito` command: what each of its verbs does and prints. Nothing imports it."""
