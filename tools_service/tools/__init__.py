"""The five tools of the paper (section 3) as plain classes, and the client that everybody calls them through.

In: lists of inputs. Out: lists of results, or reasons for none. Nothing here knows Ray or builds an index.
"""
