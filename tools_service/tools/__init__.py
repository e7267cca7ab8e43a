"""The five tools of the paper (section 3) as plain classes, and their client.

In: lists of inputs. Out: lists of results, or reasons for none. No Ray here.
"""
