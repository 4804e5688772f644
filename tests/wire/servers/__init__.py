"""WebSocket servers as people run them, each a program of its own: PyPI's websockets, autobahn, uvicorn.

All speak the same little protocol, by the request's path. To a message they answer:

``/``           what came, as JSON (``app.report``), and the message itself
``/digest``     what came, and nothing more
``/fragments``  what came, and the message in fragments (websockets and autobahn)
``/ping``       a ping with the message in it, and "pong" once that is answered (websockets and autobahn)
``/leave``      Close 1001

Each prints its port once it listens, then a JSON list ``[code, reason]`` per WebSocket that ended, and
ends itself when its standard input does, so that it never outlives a test, however that ends.
"""
