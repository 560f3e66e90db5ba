"""How models of each family write tool calls: readers of answers as they come, a small file for each format, a registry of all.

Pure text in, parts of an answer out; imports nothing of the entrypoint but `held_back`.
"""
