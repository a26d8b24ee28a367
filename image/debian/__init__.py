"""The development image: Debian's userland, our kernel, the product."""
