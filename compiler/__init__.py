"""tokenspeed-compile: frontends, the pipeline on one screen, the command line.

May import every room but runtime; of runtime only `runtime.scheduling`.
"""
