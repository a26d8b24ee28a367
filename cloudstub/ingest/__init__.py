"""Broker -> durable buffer -> stores. `__main__.py` receives, `worker.py` moves on; either may die at any time."""
