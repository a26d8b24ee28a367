"""A pretend site: networks, neighbours, faults, and the gateway image booted in the middle of them."""
