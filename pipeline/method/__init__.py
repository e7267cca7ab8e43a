"""The paper's section 2, without Ray: which texts a tool is tried on, which calls are sampled,
executed and kept, and which of them go into C*.

In: texts, a language model, a client of the tools, the method's settings. Out: one
annotation per text with every scored call, and the choice of the calls to merge. How texts
are read and rows are stored is not known here.
"""
