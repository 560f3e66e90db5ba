"""What it takes to go on with a session: arms of context_switch.py.

One client for an engine in this process, one for a server; and what the link to the host's memory carries.
"""
