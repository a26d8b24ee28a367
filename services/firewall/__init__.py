"""Zones, default deny both ways, IPv4 and IPv6: one nftables rule set, replaced as one transaction."""
