"""An example plugin of tokenspeed: a CPU target with rates of its own, and a native kernel."""
