"""WebSocket servers as people run them, each a program of its own: PyPI's websockets, autobahn, uvicorn.

All speak the same little protocol, by the request's path. To a message they answer:

``/``           what came, as JSON (``app.report``), and the message itself
``/echo``       the message itself, and nothing more (websockets)
``/digest``     what came, and nothing more
``/fragments``  what came, and the message in fragments (websockets and autobahn)
``/ping``       a ping with the message in it, and "pong" once that is answered (websockets and autobahn)
``/leave``      Close 1001

python-socketio, Starlette and Django Channels speak what they are made for; their programs say what that is.

Each prints its port once it listens, then a JSON list ``[code, reason]`` per WebSocket that ended, and
ends itself when its standard input does, so that it never outlives a test, however that ends.
"""
