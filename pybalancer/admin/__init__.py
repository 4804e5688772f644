"""The admin interface of a running pybalancer: JSON over HTTP on a Unix socket, or on TCP with a token.

``server.serve`` runs it inside the balancer's process; ``client.Client`` is what the commands use. The
two share ``address`` only, so that a command never imports the server's libraries.
"""
