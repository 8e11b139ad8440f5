"""HTTPS for services: connections, admission, the server and the client."""
