"""One folder per daemon: core.py decides (pure), adapters act, __main__.py starts."""
