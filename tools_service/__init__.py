"""The tools that texts call: plain classes, one module that puts them on Ray, one client everybody calls
through.
"""
