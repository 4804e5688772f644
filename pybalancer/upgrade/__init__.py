"""A new process takes the place of a running one, with its listening sockets and its live tunnels.

``protocol`` is what the two say to each other, as a table; ``line`` carries it; ``handing`` is the side of
the process that goes, ``taking`` that of the one that comes; ``served`` is the balancer that can do both.
"""
