"""Addresses and name servers: the desired document as systemd-networkd's files."""
