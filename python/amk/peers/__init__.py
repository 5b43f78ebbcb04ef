"""Programs that AMK is compared with, each run in a process of its own and never imported by the package.

They need packages that AMK does not: one that is missing is a reason to skip the peer, told in its answer.
"""
