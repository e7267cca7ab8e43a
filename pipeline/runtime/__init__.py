"""The connection of this process to Ray: a resource request in, a connection out; and its metrics.

This package must not know what the steps do with the connection.
"""
