"""The sans-IO core of the protocol: plain state machines that take events and return decisions.

Nothing here imports zmq or lmdb, opens a file, reads a clock or draws a random number of its own.
"""
