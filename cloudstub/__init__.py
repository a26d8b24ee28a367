"""The cloud counterpart: broker, ingest, stores, API and one page. Knows gateways only through firmware.wire."""
