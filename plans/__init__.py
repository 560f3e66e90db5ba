"""What a plan is: schema, reader, writer, integrity, signing, explain, diff.

Imports nothing else of this package, and never torch: a plan is checked and refused before anything heavy loads.
"""
