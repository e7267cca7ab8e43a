"""Results for people: tables of counts and scores, and examples of kept calls. In: manifests,
annotation rows and evaluation.json. Out: renderables of rich. Loads no model, measures nothing.
"""
