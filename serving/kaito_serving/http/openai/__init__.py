"""OpenAI's API (https://platform.openai.com/docs/api-reference) over an engine, with vLLM's extensions.

What the API has and no engine here can do is refused with a sentence; fields that change no answer are ignored.
"""
