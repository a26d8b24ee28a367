"""Who else is on the networks: the company's router, the internet's name server."""
