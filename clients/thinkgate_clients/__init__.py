"""Clients: asking a server, with the reasoning apart from the answer."""
