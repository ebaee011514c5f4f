"""Servers that the tests of targets start on loopback: real ones as processes, and two of our own."""
