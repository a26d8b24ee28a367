"""What makes a box a Sallyport gateway: configuration, status, identity, and what crosses the wire."""
