"""Mode "packet": what decides where packets go. That they do is the packet room's (``rust/packet``)."""
