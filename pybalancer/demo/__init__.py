"""``pybalancer demo``: real WebSocket servers, the balancer before them, and clients that talk.

``backends`` are processes of their own (``backend`` is what each runs) that ``outages`` kills and
brings back; ``crowd`` is the clients; ``scene`` puts all together; ``view`` shows it, with the ``news``
from the balancer's log; ``tally`` is what was seen. ``ripple`` is ``pybalancer demo --ripple``: its clients
are ``talkers``, and the ``ledger`` says what became of each message.
"""
