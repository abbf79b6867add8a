"""The API as it is served: mutual TLS, bodies, health."""
