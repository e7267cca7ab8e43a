"""The connection of this process to Ray.

A resource request goes in; a connection for the length of a block comes out. This package must not
know what the steps do with it.
"""
