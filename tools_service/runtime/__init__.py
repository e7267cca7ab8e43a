"""Ray and this machine: finds a named cluster in seconds, or starts one that fits the machine.

In: an address, or a number of CPUs. Out: a connected process, or one sentence that says why not.
It knows no tools and no steps.
"""
