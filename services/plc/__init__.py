"""Reads machines (Modbus TCP) and appends their values to the flash log."""
