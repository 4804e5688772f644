"""Mode "websocket" on the wire: what clients get, and what backends see of it."""
