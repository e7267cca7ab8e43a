"""Runs the tools: in this process, on Ray Serve for a whole cluster, or over HTTP.

In: names of tools and a ToolsConfig. Out: a client of running tools. It knows how tools are
started, shared and reached, and nothing of what they answer.
"""
