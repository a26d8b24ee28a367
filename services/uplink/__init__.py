"""Flash log -> MQTT 5 over TLS on TCP 443 -> acknowledged by the cloud."""
