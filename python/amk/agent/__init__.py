"""AMK for agents: an MCP server over stdio, and jobs that outlive it.

`server` speaks the protocol, `tools` turns the verb table into tools, `jobs` keeps long work on disk, `child` is the
process of one job, `processes` knows whether a process still is the one that was started.
Importing this package imports none of them.
"""
