"""`torchrun ... -m tokenspeed.runtime PLAN OPTIONS`: tokenspeed-run, as the rank that the launcher says."""

from .run_cli import main

main()
