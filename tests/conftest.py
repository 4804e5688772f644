"""What all tests share."""

from hypothesis import settings

# How long an example takes depends on who else uses the processor. A failure prints the line that
# replays it.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")
