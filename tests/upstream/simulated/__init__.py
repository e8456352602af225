"""A stand-in for xapi, written from what is known of its wire and behaviour and sharing no code with the project's own
server: threads, blocking sockets, xapi's own spelling of answers."""
