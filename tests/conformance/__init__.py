"""Autobahn's test cases, driven by PyPI's kosoku: what nobody here wrote judges what is here.

The suite runs twice, against a peer directly and against the same peer through pybalancer, and both
reports must be the same. ``python -m tests.conformance`` runs all of it.
"""
