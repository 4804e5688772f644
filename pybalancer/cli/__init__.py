"""The commands: one file each, put together in ``app``.

A command's module is imported when the command is run, and imports what is heavy only inside it.
"""
