"""The lungs of a CT: found, or taken from somebody else's mask."""
