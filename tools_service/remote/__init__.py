"""Tools that answer elsewhere: in a server of the Model Context Protocol (MCP), or behind a URL.

In: settings of a declaration, which hold names of environment variables instead of secrets. Out: tools as any
other. The package knows no Ray.
"""
