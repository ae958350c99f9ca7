"""The only HTTP code: KAITO's endpoints, OpenAI's, keys, limits, deadlines and the metrics page.

It sees an engine through `engine.base` alone, and knows neither torch nor Ray. `run` puts it together with an engine.
"""
