"""``python -m kaito_tuning.check``: what can be known about a training before a GPU is bought, without torch.

The configuration, whether the model server can express the adapter, every row of the data as the chat template renders
it, token lengths, tokens per epoch and steps. The report is for people, for the controller and for `kaito check-data`.
"""
