"""The Ray Serve application that answers for a model: HTTP surfaces, engines, adapters, weights."""
