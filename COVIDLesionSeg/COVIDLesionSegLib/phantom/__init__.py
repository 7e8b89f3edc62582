"""The synthetic chest: the demo's input, sample data, and the object whose every quantity is known."""
