"""How messages cross between tasks: byte layout, payload codecs, sockets and queues."""
